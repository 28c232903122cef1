"""The file of a UNIX socket: made with it, and removed with the last that has it.

A path is left behind when a server dies. One where nobody listens is stale, which only
`connect` can tell, and is replaced; anything else is never removed. Between its `bind` and
its `listen` a live server looks stale too, so both are done under a lock on the directory.
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

LOCK_WAIT_S = 1.0  # another server's bind and listen take well under a millisecond
LOCK_STEP_S = 0.005


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
    """Whether ``path`` is a socket that nobody has any more."""
    try:
        # Of a link we do not know whose it is.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return True  # its owner removed it just now
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        # EAGAIN is a live server with a full backlog, EPROTOTYPE one of datagrams.
        return client.connect_ex(path) in (errno.ECONNREFUSED, errno.ENOENT)


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
