"""A process that has the server's listening sockets as well, and does with them what it is told.

It is forked before there is a server, and given the sockets once they listen: over a socket, an
order at a time, each of which it answers before the next. It neither serves nor knows anybody:

"take"    accept a connection, and close it; or receive a datagram
"block"   say of the files how calls on them are to wait
"wait"    wait for connections exclusively, as web servers do, and leave them where they are
"shut"    shut down what can be shut down while it is somebody else's, too

Whoever waits exclusively and does not take what came has had the only wake-up there was: one
that is stopped, busy, or about to leave. It is edge-triggered, since it would spin otherwise.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from peers.stranger import forked, read_frame, set_blocking, write_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DATAGRAM_MAX = 65_536


class Stranger:
    """Our side of it."""

    def __init__(self) -> None:
        self.pid, self._sock = forked(serve)
        self._has = False

    def have(self, files: Callable[[], Iterable[socket.socket]]) -> None:
        """Give it these, if it has none yet."""
        if not self._has:
            self._has = True
            for file in files():
                self._ask("have", fd=file.fileno())

    def leave(self) -> None:
        """Have it close what it was given."""
        if self._has:
            self._has = False
            self._ask("leave")

    def take(self) -> tuple[Any, bytes]:
        """The name of a peer whose connection it has taken, or a datagram; or neither."""
        return self._ask("take")

    def block(self, *, on: bool) -> None:
        self._ask("block", on=on)

    def wait(self) -> None:
        self._ask("wait")

    def shut(self) -> None:
        self._ask("shut")

    def _ask(self, what: str, fd: int | None = None, **more: Any) -> tuple[Any, bytes]:
        write_frame(self._sock, {"do": what, **more}, b"", [] if fd is None else [fd])
        answer, data, _ = read_frame(self._sock)
        return answer, data

    def close(self) -> None:
        self._sock.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def serve(sock: socket.socket) -> NoReturn:
    """The other process, until our side is closed."""
    files: list[socket.socket] = []
    try:
        while True:
            order, _, fds = read_frame(sock)
            files += [socket.socket(fileno=fd) for fd in fds]
            answer, data = do(order, files)
            write_frame(sock, answer, data, [])
    except (EOFError, ConnectionError):
        pass
    finally:
        os._exit(0)


def do(order: dict[str, Any], files: list[socket.socket]) -> tuple[Any, bytes]:
    """One order: its answer, and data."""
    if order["do"] == "take":
        return take_one(files)
    if order["do"] == "leave":
        while files:
            files.pop().close()
    for file in files:
        if order["do"] == "block":
            set_blocking(file.fileno(), order["on"])
        elif order["do"] == "wait" and is_listening(file):
            threading.Thread(target=wait_for_ever, args=[file.fileno()], daemon=True).start()
        elif order["do"] == "shut" and not is_tcp(file):
            # Of a TCP listener it would be the end, which is no secret to anybody.
            with contextlib.suppress(OSError):  # ENOTCONN, and it is done all the same
                file.shutdown(socket.SHUT_RD)
    return None, b""


def take_one(files: list[socket.socket]) -> tuple[Any, bytes]:
    """From the first that has something, if it is sure not to wait."""
    for file in files:
        with contextlib.suppress(OSError):
            if not is_listening(file):
                return None, file.recv(DATAGRAM_MAX, socket.MSG_DONTWAIT)
            if not os.get_blocking(file.fileno()):
                taken, name = file.accept()
                taken.close()
                if isinstance(name, bytes):  # an abstract one
                    name = name.decode(errors="surrogateescape")
                return name, b""
    return None, b""


def wait_for_ever(fd: int) -> None:
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE | select.EPOLLET)
        while True:
            epoll.poll()


def is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_tcp(sock: socket.socket) -> bool:
    return sock.family != socket.AF_UNIX and sock.type == socket.SOCK_STREAM
