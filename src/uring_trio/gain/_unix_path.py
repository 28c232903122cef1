"""The file of a UNIX socket: made with it, and removed with the last that has it.

A path is left behind when a server dies. One that no socket has is stale, and is replaced;
anything else is never removed.

Who has it only the kernel knows, which finds a path's socket by the file, in whatever
namespace of the network it was bound. It tells by a `connect` of another type: a datagram
socket is refused with EPROTOTYPE where a stream socket is bound, whether or not it listens
yet, and with ECONNREFUSED only where there is none. A stream socket's own `connect` would be
ECONNREFUSED for both; and where somebody does listen it would be a connection, which he
accepts. If the socket there is one of datagrams ours is connected to it, of which it
notices nothing, or is told EPERM because it talks to another.

`bind` makes the file first and puts the socket to it afterwards, so what looks stale is
looked at twice, with a pause. From the look to the `bind` nobody else may do the same, or he
would remove what is bound here by then: so that is done under a lock on the directory.

What this does not see: a socket that another kernel has, on a file system that is shared
with it, or that was bound to the same file by way of another file system (the layers of an
overlay). Nor does it keep out programs that remove the path without asking, or replace it
without the lock in the microseconds between the second look and the `bind`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_WAIT_S = 1.0  # another server's bind takes LOOK_AGAIN_S at most
LOCK_STEP_S = 0.005
LOOK_AGAIN_S = 0.01  # the kernel's part of a bind takes microseconds, unless it is preempted


class UnixPath:
    """The file of a socket that several listeners share, in any threads."""

    def __init__(self, path: str) -> None:
        # The program may change its directory before it closes the socket.
        self._path = os.path.abspath(path)
        self._identity = _identity(self._path)
        self._lock = threading.Lock()
        self._shares = 0

    def share(self) -> UnixPath:
        """Take one more share; each is to be released once."""
        with self._lock:
            self._shares += 1
        return self

    def release(self) -> None:
        """Let go of a share; with the last one the file goes, if it is still this one."""
        with self._lock:
            self._shares -= 1
            assert self._shares >= 0
            if self._shares:
                return
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._identity:
                os.unlink(self._path)


def bind_and_listen(sock: socket.socket, path: str, backlog: int) -> UnixPath:
    """Bind ``sock`` to ``path``, replacing a stale socket there, and listen.

    Returns:
      The file, of which the caller is to take its shares.

    Raises:
      OSError: with EADDRINUSE where anything but a stale socket is in the way.
    """
    with _directory_locked(os.path.dirname(os.path.abspath(path))):
        try:
            sock.bind(path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            sock.bind(path)
        file = UnixPath(path)
    try:
        sock.listen(backlog)
    except BaseException:
        file.share().release()
        raise
    return file


def _is_stale(path: str) -> bool:
    """Whether ``path`` is a socket that nobody has any more, or is gone."""
    try:
        before = _identity(path)
        # Of a link we do not know whose it is.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        if _has_owner(path):
            return False
        time.sleep(LOOK_AGAIN_S)
        return not _has_owner(path) and _identity(path) == before
    except FileNotFoundError:
        return True  # its owner removed it just now


def _has_owner(path: str) -> bool:
    """Whether a socket is bound to this file, or may be, for all that we are allowed to ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        return asking.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


@contextlib.contextmanager
def _directory_locked(directory: str) -> Iterator[None]:
    """Keep out other servers that bind in ``directory``, as far as it can be locked.

    Anybody who may read the directory may hold the lock, so nobody is waited for long.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # Not ours to read, or not there, of which `bind` has more to say.
        yield
        return
    try:
        _lock(fd)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_STEP_S)
        except OSError:
            return  # a file system without locks


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
