"""Programs in which a call beside the ring that does not go through the kernel's table is a trap.

``python trapped.py NAME`` runs one of `PROGRAMS`. Its kernel makes each call of the table by
the C library's ``syscall``, and counts it; from a moment on a filter lets these calls through
from there alone. Any other raises SIGSYS, which prints the Python that has made it, and ends
the process. At the end the counts are printed.

The filter is this thread's. Peers are threads that were there before it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kernel_table
import sandbox
import trio

import uring_trio
from uring_trio import gain
from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kernel_table import Call

# x86-64's. The first of each name in the table is how the child's kernel makes it.
NUMBERS = {
    "sendto": (44,),
    "recvfrom": (45,),
    "sendmsg": (46, 307),  # sendmmsg
    "recvmsg": (47, 299),  # recvmmsg
    "accept4": (288, 43),  # accept
    "connect": (42,),
    "shutdown": (48,),
    "getsockopt": (55,),
    "setsockopt": (54,),
    "getsockname": (51,),
    "getpeername": (52,),
    "read": (0, 17, 19),  # pread64, readv
    "write": (1, 18, 20),  # pwrite64, writev
    "poll": (7, 23, 270, 271, 232, 281),  # select, pselect6, ppoll, epoll_wait, epoll_pwait
    "status_flags": (72,),  # fcntl
    "queued": (16,),  # ioctl
    "mode": (5, 262, 332),  # fstat; newfstatat, statx
    "close_fd": (3,),
}
# What a stream or a socket of Python's is made with, and what decides nothing: the constructor
# of `socket.socket` asks for the name, to see that it is a socket, and trio's switches blocking
# off, by ioctl(2).
UNTRAPPED = ("getsockname", "queued")
F_GETFL, FIONREAD, ST_MODE_AT = 3, 0x541B, 24  # bytes, in x86-64's struct stat
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
STANDARD_STREAMS = [0, 1, 2]

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
counts: Counter[str] = Counter()
ffi, _ = load_extension()


def syscall(number: int, *arguments: Any) -> int:
    words = [
        each if isinstance(each, int) else int(ffi.cast("intptr_t", each)) for each in arguments
    ]
    result: int = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, words))
    return result if result >= 0 else -ctypes.get_errno()


def plain(name: str) -> Callable[..., int]:
    def call(_real: Call, *arguments: Any) -> int:
        counts[name] += 1
        return syscall(NUMBERS[name][0], *arguments)

    return call


def status_flags(_real: Call, fd: int) -> int:
    counts["status_flags"] += 1
    return syscall(NUMBERS["status_flags"][0], fd, F_GETFL)


def queued(_real: Call, fd: int) -> int:
    counts["queued"] += 1
    found = ffi.new("int *")
    error = syscall(NUMBERS["queued"][0], fd, FIONREAD, found)
    return error if error < 0 else int(found[0])


def mode(_real: Call, fd: int) -> int:
    counts["mode"] += 1
    status = ffi.new("char[256]")
    error = syscall(NUMBERS["mode"][0], fd, status)
    return error if error < 0 else int(ffi.cast("unsigned *", status + ST_MODE_AT)[0])


def trap(*files: int) -> None:
    """From here on; *files* are others' own business."""
    code = ctypes.string_at(ctypes.cast(libc.syscall, ctypes.c_void_p).value or 0, 64)
    start = ctypes.cast(libc.syscall, ctypes.c_void_p).value or 0
    instruction = b"\x0f\x05"  # syscall
    numbers = [n for name, all_of_it in NUMBERS.items() if name not in UNTRAPPED for n in all_of_it]
    faulthandler.register(signal.SIGSYS, all_threads=False, chain=True)
    counts.clear()
    address = start + code.index(instruction) + len(instruction)
    sandbox.trap_calls(numbers, address, [*STANDARD_STREAMS, *files])


def tell_and_exit() -> None:
    """Without the end of the run, which closes what is trio's."""
    os.write(1, json.dumps(counts).encode())
    os._exit(0)


def peer(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """A thread without a filter, which begins when what this returns is called."""
    begin = threading.Event()

    def run() -> None:
        begin.wait()
        function(*arguments)

    threading.Thread(target=run, daemon=True).start()
    return begin.set


# ---- a plain call ----------------------------------------------------------------------------


def past_the_table() -> None:
    here, _there = socket.socketpair()
    trap()
    here.send(b"x")
    tell_and_exit()


# ---- trio's sockets and streams --------------------------------------------------------------


def talk(address: Any, reset: bool) -> None:
    with socket.create_connection(address) as client:
        client.sendall(b"ask")
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)


async def serve_one(listener: trio.socket.SocketType) -> None:
    accepted, _ = await listener.accept()
    stream = trio.SocketStream(accepted)
    assert await stream.receive_some() == b"ask"
    await stream.send_all(b"answer")
    await stream.send_eof()
    try:
        assert await stream.receive_some() == b""
    except trio.BrokenResourceError:
        pass  # reset
    await stream.aclose()


async def sockets() -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        begin = [peer(talk, address, False), peer(talk, address, True)]
        # One waits already, the other comes later.
        begin[0]()
        await trio.lowlevel.wait_readable(listener)
        trap()
        await serve_one(listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_one, listener)
            await trio.sleep(0.05)
            begin[1]()
        listener.close()
    tell_and_exit()


async def local_sockets() -> None:
    name = f"\0trapped {os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(0)
    ours = [trio.socket.socket(trio.socket.AF_UNIX) for _ in range(3)]
    theirs: list[Any] = []

    def accept_all() -> None:
        theirs.extend(listener.accept()[0] for _ in ours)

    begin = peer(accept_all)
    trap()
    async with trio.open_nursery() as nursery:  # the queue takes one, and the rest waits
        for sock in ours:
            nursery.start_soon(sock.connect, name)
        await trio.sleep(0.05)
        begin()
    for sock in ours:
        sock.shutdown(trio.socket.SHUT_RDWR)
        with sock:
            pass
    tell_and_exit()


async def datagrams() -> None:
    ours = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await ours.bind(("127.0.0.1", 0))
    other = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await other.bind(("127.0.0.1", 0))
    trap()
    await ours.sendto(b"ask", other.getsockname())
    data, sender = await other.recvfrom(100)
    await other.sendmsg([data, b"!"], [], 0, sender)
    assert (await ours.recv(100)) == b"ask!"
    other.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 10_000)
    other.close()
    ours.close()
    tell_and_exit()


async def readiness() -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    ends = os.pipe2(os.O_NONBLOCK)
    trap(ends[1])  # which the test writes to
    for fd in (event, ends[0]):
        with trio.move_on_after(0.01):
            await trio.lowlevel.wait_readable(fd)
    await trio.lowlevel.wait_writable(event)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.wait_readable, ends[0])
        await trio.sleep(0.01)
        os.write(ends[1], b"x")
    tell_and_exit()


async def file_streams() -> None:
    path = Path(sys.argv[2]) / "fifo"
    os.mkfifo(path)
    ends = [os.pipe(), (os.open(path, os.O_RDWR), os.open(path, os.O_RDWR))]
    streams = [tuple(map(trio.lowlevel.FdStream, pair)) for pair in ends]
    trap()
    for reader, writer in streams:
        await writer.send_all(b"data")
        assert await reader.receive_some(100) == b"data"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.receive_some, 100)
            await trio.sleep(0.01)
            await writer.send_all(b"more")
    tell_and_exit()


# ---- a guest ---------------------------------------------------------------------------------


def guest() -> None:
    callbacks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    scope = trio.CancelScope()
    here, there = socket.socketpair()

    def disturb() -> None:
        time.sleep(0.05)
        callbacks.put(scope.cancel)  # while the helper sleeps
        time.sleep(0.05)
        there.send(b"x")

    async def main() -> None:
        begin = peer(disturb)
        ours = trio.socket.from_stdlib_socket(here)
        trap()  # before there is a helper: it has the filter as well
        begin()
        with scope:
            await trio.sleep_forever()
        assert await ours.recv(1) == b"x"
        tell_and_exit()

    uring_trio.install(backend="io_uring")
    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=callbacks.put, done_callback=lambda _: None
    )
    while True:
        callbacks.get()()


# ---- callback servers ------------------------------------------------------------------------


class Echo:
    """Answers; the first callback sets the trap, on the worker's thread."""

    def __init__(self, last: int) -> None:
        self.left = last  # connections

    def on_accept(self, conn: gain.Conn) -> None:
        if not counts["trap"]:
            trap()
            counts["trap"] = 1
        conn.set_no_delay(True)
        conn.set_linger(-1)

    def on_read(self, conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        if data.startswith(b"leave"):
            conn.close()
        elif data == b"hush":
            conn.pause_reading()  # its end is told by a poll alone
        elif data.startswith(b"abort"):
            conn.abort()
        else:
            conn.write(data)

    def on_close(self, conn: gain.Conn, _err: BaseException | None) -> None:
        assert conn.local_addr()
        self.left -= 1
        if not self.left:
            tell_and_exit()


LARGE = bytes(1 << 20)
RUDE = (b"small", b"leave", b"leave, and more is unread" * 100, b"abort", b"reset", b"hush", LARGE)


def ask(address: Any, words: bytes) -> None:
    with socket.create_connection(address) as client:
        client.sendall(words)
        if words in (b"reset", b"hush"):
            time.sleep(0.05)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        elif words.startswith((b"leave", b"abort")):
            try:
                client.recv(100)
            except ConnectionError:
                pass
        else:
            left = len(words)
            while left:
                left -= len(client.recv(1 << 20))


def ask_all(address: Any) -> None:
    for words in RUDE:
        ask(address, words)


def ask_by_datagram(address: Any) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(address)
        for _ in range(3):
            client.send(b"ask")
            assert client.recv(100) == b"ask"
    nobody = socket.socket(type=socket.SOCK_DGRAM)
    nobody.bind(("127.0.0.1", 0))
    nobody.connect(address)
    nobody.send(b"and is gone")
    nobody.close()


class EchoDatagrams:
    """Answers; the first callback sets the trap, and some later one is the last."""

    def __init__(self) -> None:
        self.left = 4

    def on_read(self, conn: gain.Conn, n: int) -> None:
        if not counts["trap"]:
            trap()
            counts["trap"] = 1
        data = conn.next(n)
        assert conn.remote_addr()
        conn.write(data)
        self.left -= 1
        if not self.left:
            conn.start_soon(self.end)

    async def end(self) -> None:
        await trio.sleep(0.05)  # the last answer finds nobody, and that comes back
        tell_and_exit()


async def server(address: str, handler: Any, client: Callable[[Any], None]) -> None:
    async with trio.open_nursery() as nursery:
        served = await nursery.start(gain.serve, address, handler)
        peer(client, tuple(served.addresses()[0]))()


async def connections() -> None:
    await server("tcp://127.0.0.1:0", Echo(len(RUDE)), ask_all)


async def served_datagrams() -> None:
    await server("udp://127.0.0.1:0", EchoDatagrams(), ask_by_datagram)


async def served_datagrams_of_every_address() -> None:
    await server("udp://0.0.0.0:0", EchoDatagrams(), ask_by_datagram)


PROGRAMS: dict[str, Callable[[], Awaitable[None]]] = {
    "sockets": sockets,
    "local_sockets": local_sockets,
    "datagrams": datagrams,
    "readiness": readiness,
    "file_streams": file_streams,
    "connections": connections,
    "served_datagrams": served_datagrams,
    "served_datagrams_of_every_address": served_datagrams_of_every_address,
}

if __name__ == "__main__":
    special = {"status_flags": status_flags, "queued": queued, "mode": mode}
    ours = {name: special.get(name) or plain(name) for name in NUMBERS}
    with kernel_table.calls(**ours):
        if sys.argv[1] in PROGRAMS:
            uring_trio.run(PROGRAMS[sys.argv[1]], backend="io_uring")
        {"past_the_table": past_the_table, "guest": guest}[sys.argv[1]]()
