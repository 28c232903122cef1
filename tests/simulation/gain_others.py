"""Who comes to simulated servers beside the clients of channels: visitors, and strangers.

A *visitor* connects, asks, is answered, stays for a while and goes. So servers with few places,
several addresses, and those that are started again have somebody to serve at any time; and who
waits for longer than anything takes, while there is a place, was forgotten.

A *stranger* is another process that has a server's file, as one has that it was passed to. It
takes what has just come, shuts a listener down, or switches the file's O_NONBLOCK; it is this
process here, by calls that do not wait. A peer may be gone with a reset.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import trio

from simulation.faults import NotTold, WrongBytes, WrongEnd, require
from simulation.gain_handlers import VISITOR
from simulation.programs_ends import DONT_WAIT, NO_MEMORY, SLACK_S
from simulation.programs_model import content
from uring_trio import gain
from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from simulation.gain_ends import Served
    from simulation.programs_gain import Seat, Service

OF_SERVICE = ("visit", "restart", "steal", "shut", "blocking", "spoil", "steal_bytes", "reset")
VISIT_MAX = 2000  # bytes: both directions have room for as much
STAYS_S = (0.0, 0.0, 0.02, 3.0)
STEALS_MAX = 130  # in a row: more than a server takes for chance
BAD_SIZE = 40  # bytes
WINDOW_MIN = 30_000  # bytes for which a server's socket has room in any case


class Others:
    """Those of one program."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ffi, self._lib = load_extension()

    @property
    def _kernel(self) -> Any:
        return self._lib.ut_kernel_in_use

    async def do(self, verb: str, place: int, size: int) -> str:
        """One step."""
        if not self._service.seats:
            return "left out"
        if verb == "restart":
            return await self._service.restart(place, size)
        how: str = await getattr(self, verb)(place, size)
        return how

    def _pick(self, place: int, *, streams: bool = True) -> tuple[str, int, Seat, Any] | None:
        """A network, and there a server and one of its addresses."""
        networks = [name for name in self._service.by_network if streams is (name != "udp")]
        if not networks:
            return None
        network = networks[place % len(networks)]
        found = self._service.address(network, place // len(networks))
        return None if found is None else (network, found[1], found[0], found[2])

    # ---- visitors ------------------------------------------------------------------------

    async def visit(self, place: int, size: int) -> str:
        """Connect, ask, be answered, stay."""
        picked = self._pick(place)
        if picked is None:
            return "left out"
        network, index, seat, address = picked
        question = content(101, place, 1 + size % VISIT_MAX)
        started, began = seat.started, self._service.now()
        client: Any = trio.socket.socket(family_of(network))
        served = False
        try:
            await client.connect(address)
            await send_all(client, bytes((VISITOR,)) + question)
            answer = await receive(client, len(question))
            require(answer == question, WrongBytes, "a visitor gets another one's answer")
            served = True
            await trio.sleep(STAYS_S[size % len(STAYS_S)])
        except trio.Cancelled:
            late = self._service.now() - began >= SLACK_S and seat.has_long_had_room()
            awaited = late and started == seat.started and index not in seat.shut
            require(served or not awaited, NotTold, "a visitor is not served, and there is room")
            raise
        except (EOFError, OSError) as exc:
            number = getattr(exc, "errno", None)
            stopped = started != seat.started or not seat.is_at_work()
            excused = stopped or seat.shut or seat.was_robbed or number in NO_MEMORY
            excused = excused or self._service.no_memory
            require(excused, WrongEnd, f"a visitor is turned away: {exc!r}")
            return type(exc).__name__
        finally:
            client.close()
        return "served"

    # ---- strangers -----------------------------------------------------------------------

    def _listener(self, network: str, address: Any) -> int | None:
        """The descriptor of a server's own listener, or UDP socket."""
        type_ = stdlib_socket.SOCK_DGRAM if network == "udp" else stdlib_socket.SOCK_STREAM
        for entry in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                sock = stdlib_socket.socket(fileno=int(entry))
                try:
                    if sock.family == family_of(network) and sock.type == type_:
                        own = sock.getsockname()
                        listens = network == "udp" or sock.getsockopt(
                            stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN
                        )
                        if listens and own == address:
                            return int(entry)
                finally:
                    sock.detach()
        return None

    async def steal(self, place: int, size: int) -> str:
        """Connections, or datagrams, that have just come."""
        if place % 3 == 0 and "udp" in self._service.by_network:
            return await self._steal_datagrams(place, size)
        picked = self._pick(place)
        if picked is None:
            return "left out"
        network, _, seat, address = picked
        seat.was_robbed = True
        taken = 0
        for _ in range(1 + size % STEALS_MAX):
            listener = self._listener(network, address)
            if listener is None or not seat.is_at_work():
                break
            with trio.socket.socket(family_of(network)) as client:
                try:
                    await client.connect(address)
                except OSError:
                    break
                null = self._ffi.NULL
                if os.get_blocking(listener):
                    break
                fd = self._kernel.accept4(listener, null, null, stdlib_socket.SOCK_CLOEXEC)
                if fd >= 0:
                    self._kernel.close_fd(fd)
                    taken += 1
            await trio.lowlevel.checkpoint()
        return f"{taken} taken"

    async def _steal_datagrams(self, place: int, size: int) -> str:
        picked = self._pick(place, streams=False)
        fd = None if picked is None else self._listener("udp", picked[3])
        if fd is None:
            return "left out"
        memory = self._ffi.new("char[]", 1 << 16)
        null = self._ffi.NULL
        taken = 0
        for _ in range(1 + size % 4):
            count = self._kernel.recvfrom(fd, memory, 1 << 16, DONT_WAIT, null, null)
            if count <= 0:
                break
            data = bytes(self._ffi.buffer(memory, count))
            served = self._service.served.get(data[0] // 2)
            if served is not None:
                served.incoming.receive(data, count)
                served.touch()
            taken += 1
        return f"{taken} taken"

    async def steal_bytes(self, place: int, size: int) -> str:
        """Of a connection."""
        served = self._channel(place)
        if served is None or served.conn is None or served.is_over:
            return "left out"
        size = max(16, size % 5000)
        memory = self._ffi.new("char[]", size)
        null = self._ffi.NULL
        try:
            fd = served.conn.fileno()
        except gain.OpNotAvailableInMode:
            return "lent"
        count = self._kernel.recvfrom(fd, memory, size, DONT_WAIT, null, null) if fd >= 0 else 0
        if count <= 0:
            return "nothing"
        served.lose_to(bytes(self._ffi.buffer(memory, count)))
        return f"{count} bytes taken"

    async def shut(self, place: int, size: int) -> str:
        """A listener: nobody can connect there any more."""
        picked = self._pick(place)
        if picked is None:
            return "left out"
        network, index, seat, address = picked
        listener = self._listener(network, address)
        if listener is None or not seat.is_at_work():
            return "left out"
        if self._service.program.option("switches", {}).get("accept_waits"):
            # Where its calls may wait, too, an accept there gets a thread, and is told at once.
            self._service.simulation.allow_hand_over()
        seat.shut.add(index)
        self._service.expect("accepting on ")
        how = (stdlib_socket.SHUT_RD, stdlib_socket.SHUT_RDWR)[size % 2]
        answer = self._kernel.shutdown(listener, how)
        return "shut" if answer == 0 else errno.errorcode[-answer]

    async def blocking(self, place: int, size: int) -> str:
        """The file says that its calls may wait, or that they may not."""
        picked = self._pick(place, streams=size % 3 != 0)
        fd = None if picked is None else self._listener(picked[0], picked[3])
        if fd is None:
            return "left out"
        if picked is not None and picked[1] in picked[2].shut:
            return "left out"  # it is tried again and again, which takes long here
        os.set_blocking(fd, size % 5 != 0)
        return "done"

    async def spoil(self, place: int, size: int) -> str:
        """Datagrams with a wrong checksum come."""
        picked = self._pick(place, streams=False)
        fd = None if picked is None else self._listener("udp", picked[3])
        if picked is None or fd is None:
            return "left out"
        for _ in range(1 + size % STEALS_MAX):
            if self._listener("udp", picked[3]) != fd:
                break  # the server has ended
            sock = stdlib_socket.socket(fileno=fd)
            self._service.simulation.bad_datagram(sock, BAD_SIZE)
            sock.detach()
            await trio.lowlevel.checkpoint()
        return "come"

    # ---- peers ---------------------------------------------------------------------------

    def _channel(self, place: int) -> Served | None:
        served = list(self._service.served.values())
        found = served[place % len(served)] if served else None
        return found if found is not None and found.is_stream else None

    async def reset(self, place: int, _size: int) -> str:
        """A client goes with a reset; all that it has sent may have come before."""
        served = self._channel(place)
        end: Any = None if served is None else served.peer
        if served is None or end.closed or served.network != "tcp":
            return "left out"
        # What there was room for has come, if nothing is under way for a time.
        delayed = "delays" in self._service.program.network_kinds
        if not delayed and not end.writing.uses and served.known() - served.seen() < WINDOW_MIN:
            served.kept = served.known()
        how: str = await end.abort(0)
        return how


def family_of(network: str) -> int:
    return stdlib_socket.AF_UNIX if network == "unix" else stdlib_socket.AF_INET


async def send_all(sock: Any, data: bytes) -> None:
    while data:
        data = data[await sock.send(data) :]


async def receive(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data
