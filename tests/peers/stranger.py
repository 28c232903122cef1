"""A process that has some of our files as well, and does with them what it is told.

It is forked before there is a ring. What it is told goes over a socket: a head in JSON, data
behind it, and a descriptor with a file that it is to have. It answers each order before the next.
A file that it is *greedy* for it takes from by itself, as soon as there is something: by an epoll
that is exclusive, as web servers accept.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import socket as stdlib_socket
import struct
from typing import TYPE_CHECKING, Any, NoReturn

import machine_speed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LENGTHS = struct.Struct("!II")
SLOWNESS = machine_speed.slowness()
ANSWER_MAX_S = 4.0 * SLOWNESS
CHUNK = 65536
# A look tells of what another one takes; then there is nothing to wait for. Whoever gets no CPU
# for so long, just after a call that did not wait, loses what it gave.
BLOCK_MAX_S = 0.05 * SLOWNESS
ALL = select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP


def write_frame(sock: stdlib_socket.socket, head: Any, data: bytes, fds: list[int]) -> None:
    text = json.dumps(head).encode()
    control = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([LENGTHS.pack(len(text), len(data))], control if fds else [])
    sock.sendall(text + data)


def read_exactly(sock: stdlib_socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (chunk := sock.recv(size - len(data))):
            raise EOFError
        data += chunk
    return data


def read_frame(sock: stdlib_socket.socket) -> tuple[Any, bytes, list[int]]:
    lengths, fds, _, _ = stdlib_socket.recv_fds(sock, LENGTHS.size, 1)
    lengths += read_exactly(sock, LENGTHS.size - len(lengths)) if lengths else b""
    if not lengths:
        raise EOFError
    text, data = LENGTHS.unpack(lengths)
    return json.loads(read_exactly(sock, text)), read_exactly(sock, data), fds


def forked(serve: Callable[[stdlib_socket.socket], NoReturn]) -> tuple[int, stdlib_socket.socket]:
    """A process that serves at the other end of the socket: its number, and our end."""
    ours, theirs = stdlib_socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        serve(theirs)
    theirs.close()
    ours.settimeout(ANSWER_MAX_S)
    return pid, ours


class Stranger:
    """Our side of it."""

    def __init__(self) -> None:
        self.pid, self._sock = forked(serve)

    def ask(self, head: dict[str, Any], data: bytes = b"", fd: int | None = None) -> Any:
        """Have it do something: its answer, and the data with it."""
        write_frame(self._sock, head, data, [] if fd is None else [fd])
        answer, answer_data, _ = read_frame(self._sock)
        return answer, answer_data

    def close(self) -> None:
        self._sock.close()
        os.waitpid(self.pid, 0)


def give_up(_: int, __: Any) -> None:
    """Of a signal.

    Raises:
      BlockingIOError: whoever is interrupted would go on waiting.
    """
    raise BlockingIOError


def serve(sock: stdlib_socket.socket) -> NoReturn:
    """The other process, until our side is closed."""
    signal.signal(signal.SIGALRM, give_up)
    try:
        Service(sock).run()
    except (EOFError, ConnectionResetError):
        pass
    finally:
        os._exit(0)


class Service:
    """What it has and does."""

    def __init__(self, sock: stdlib_socket.socket) -> None:
        self._sock = sock
        self._files: dict[int, int] = {}
        self._greedy: dict[int, int] = {}  # by descriptor: the key
        self._taken: dict[int, list[bytes]] = {}
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)

    def run(self) -> NoReturn:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._sock.fileno():
                    head, data, fds = read_frame(self._sock)
                    answer, answer_data = self._do(head, data, fds)
                    write_frame(self._sock, answer, answer_data, [])
                elif fd in self._greedy:
                    key = self._greedy[fd]
                    if (taken := self._take(key, CHUNK)) is not None:
                        self._taken.setdefault(key, []).append(taken)
                    if taken == b"":  # the end of a stream is no news each time
                        self._be_content(key)

    def _do(self, head: dict[str, Any], data: bytes, fds: list[int]) -> tuple[Any, bytes]:
        key = head["key"]
        if head["do"] == "have":
            self._files[key] = fds[0]
        elif key not in self._files:
            return None, b""
        elif head["do"] == "take":
            taken = self._take(key, head["size"])
            return taken is not None, taken or b""
        elif head["do"] == "put":
            return self._put(key, data), b""
        elif head["do"] == "block":
            set_blocking(self._files[key], head["on"])
        elif head["do"] == "greedy" and key not in self._greedy.values():
            fd = self._files[key]
            self._greedy[fd] = key
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        elif head["do"] == "content":
            self._be_content(key)
            chunks = self._taken.pop(key, [])
            return [len(chunk) for chunk in chunks], b"".join(chunks)
        elif head["do"] == "leave":
            self._be_content(key)
            os.close(self._files.pop(key))
        return True, b""

    def _be_content(self, key: int) -> None:
        for fd in [fd for fd, greedy in self._greedy.items() if greedy == key]:
            self._epoll.unregister(fd)
            del self._greedy[fd]

    def _take(self, key: int, size: int) -> bytes | None:
        return take(self._files[key], size)

    def _put(self, key: int, data: bytes) -> int:
        return put(self._files[key], data)


# ---- what a rival does with a file, in this process as well ------------------------------


def set_blocking(fd: int, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK if on else flags | os.O_NONBLOCK)


@contextlib.contextmanager
def not_for_long() -> Iterator[None]:
    """In the other process: what is there may be gone, and the file be one that blocks."""
    if signal.getsignal(signal.SIGALRM) is not give_up:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, BLOCK_MAX_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def poll_says(fd: int, events: int = ALL) -> int:
    """What poll(2) says of a file now; of none it says nothing."""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, events)
    return sum(found for _, found in poll.poll(0))


def as_socket(fd: int) -> stdlib_socket.socket | None:
    try:
        return stdlib_socket.socket(fileno=fd)
    except OSError:
        return None


def take(fd: int, size: int) -> bytes | None:
    """Receive, read or accept what is there: None if there is nothing, b"" for an end or an error.

    Of a connection: what its client has sent as its name.
    """
    try:
        return receive(fd, size)
    except OSError:
        return b""


def receive(fd: int, size: int) -> bytes | None:
    """The same.

    Raises:
      OSError: an error.
    """
    sock = as_socket(fd)
    if sock is None:
        if not poll_says(fd, select.POLLIN):  # perhaps it would block
            return None
        with contextlib.suppress(BlockingIOError), not_for_long():
            return os.read(fd, size)
        return None
    try:
        if sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN):
            return accept_name(sock)
        return sock.recv(size, stdlib_socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    finally:
        sock.detach()


NAME = 8  # bytes that each client sends first
NAME_MAX_S = 2.0 * SLOWNESS


def accept_name(listener: stdlib_socket.socket) -> bytes | None:
    if not poll_says(listener.fileno(), select.POLLIN):
        return None
    with not_for_long():
        connection, _ = listener.accept()
    with connection:
        return name_of(connection)


def name_of(connection: stdlib_socket.socket) -> bytes:
    """Who has connected: it says so at once."""
    connection.settimeout(NAME_MAX_S)
    # Of the listener's, perhaps more than a name is long.
    connection.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVLOWAT, 1)
    try:
        return read_exactly(connection, NAME)
    except (EOFError, OSError):
        return bytes(NAME)  # it has gone before it said anything


def put(fd: int, data: bytes) -> int:
    """Send or write what is taken at once; how much that is."""
    sock = as_socket(fd)
    if sock is None:
        if not poll_says(fd, select.POLLOUT):
            return 0
        try:
            # So much a pipe takes without blocking, if it takes anything.
            return os.write(fd, data[: select.PIPE_BUF])
        except OSError:
            return 0
    try:
        return sock.send(data, stdlib_socket.MSG_DONTWAIT | stdlib_socket.MSG_NOSIGNAL)
    except OSError:
        return 0
    finally:
        sock.detach()
