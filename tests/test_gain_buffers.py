"""The input and the output buffer of a connection, method for method."""

from __future__ import annotations

import array
import contextlib
import io
import random
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import (
    MIB,
    Recorder,
    connect,
    connected,
    in_thread,
    open_client,
    pattern,
    read_exactly,
    receive_all,
    receive_exactly,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import _kernel, gain
from uring_trio._kernel import BUFFER_GROUPS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import trio


pytestmark = ON_RING

DATA = bytes(range(256)) * 4  # 1024 bytes


@pytest.fixture(autouse=True)
def no_tick_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written stays in the buffer until the tick is over, however busy the machine."""
    monkeypatch.setattr(_kernel, "LONG_TICK_NS", 0)


@contextlib.asynccontextmanager
async def holding(data: bytes) -> AsyncIterator[tuple[gain.Conn, trio.SocketStream]]:
    """A connection with this, and nothing else, in its input buffer."""
    async with connected(Recorder()) as (conn, client):
        await add(conn, client, data)
        yield conn, client


async def add(conn: gain.Conn, client: trio.SocketStream, data: bytes) -> None:
    expected = conn.inbound_buffered() + len(data)
    await client.send_all(data)
    await until(lambda: conn.inbound_buffered() == expected, "the input has come")


# Gain's unit tests


async def test_context() -> None:
    async with connected(Recorder()) as (conn, _):
        assert conn.context is None
        conn.context = context = object()
        assert conn.context is context


async def test_read_from() -> None:
    async with connected(Recorder()) as (conn, client):
        assert conn.read_from(io.BytesIO(DATA)) == 1024
        assert conn.outbound_buffered() == 1024
        assert await read_exactly(client, 1024) == DATA
        await until(lambda: conn.outbound_buffered() == 0)


async def test_write_to() -> None:
    async with holding(DATA) as (conn, _):
        file = io.BytesIO()
        assert conn.write_to(file) == 1024
        assert file.getvalue() == DATA
        assert conn.inbound_buffered() == 0


async def test_peek() -> None:
    async with holding(DATA) as (conn, _):
        assert conn.peek(-1) == DATA
        assert conn.inbound_buffered() == 1024


async def test_discard() -> None:
    async with holding(DATA) as (conn, _):
        assert conn.discard(512) == 512
        assert conn.peek(-1) == DATA[512:]


# Input


@pytest.mark.parametrize("method", ["read", "next", "peek"])
async def test_negative_is_all_and_zero_is_none(method: str) -> None:
    async with holding(DATA) as (conn, client):
        take = getattr(conn, method)
        consumes = method != "peek"
        assert take(0) == b""
        assert take(100) == DATA[:100]
        rest = DATA[100:] if consumes else DATA
        assert take() == rest
        if consumes:
            await add(conn, client, rest)
        assert take(-1) == rest
        if consumes:
            await add(conn, client, rest)
        assert take(-100) == rest
        assert conn.inbound_buffered() == (0 if consumes else len(DATA))


async def test_next_of_too_much_consumes_nothing() -> None:
    async with holding(DATA) as (conn, _):
        with pytest.raises(gain.ShortBuffer):
            conn.next(1025)
        assert conn.inbound_buffered() == 1024
        assert conn.next(1024) == DATA
        with pytest.raises(gain.ShortBuffer):
            conn.next(1)


@pytest.mark.parametrize("method", ["next", "read", "discard"])
async def test_a_number_that_is_no_integer_consumes_nothing(method: str) -> None:
    told: list[bytes] = []

    def on_read(conn: gain.Conn, _n: int) -> None:
        with pytest.raises(TypeError):
            getattr(conn, method)(2.0)
        told.append(conn.next())

    async with connected(Recorder(on_read=on_read)) as (_, client):
        await client.send_all(DATA)
        await until(lambda: bool(told))
    assert b"".join(told) == DATA


async def test_peek_and_read_of_too_much_give_what_there_is() -> None:
    async with holding(DATA) as (conn, _):
        assert conn.peek(1025) == DATA
        assert conn.read(1025) == DATA


async def test_empty_is_not_end_of_file() -> None:
    async with connected(Recorder()) as (conn, client):
        with pytest.raises(gain.IsEmpty):
            conn.read()
        with pytest.raises(gain.IsEmpty):
            conn.read(1)
        with pytest.raises(gain.IsEmpty):
            conn.read_into(bytearray(1))
        with pytest.raises(gain.IsEmpty):
            conn.write_to(io.BytesIO())
        assert conn.read(0) == b""
        assert conn.next() == conn.next(-1) == conn.next(0) == b""
        assert conn.peek() == conn.peek(5) == b""
        assert conn.discard() == conn.discard(5) == 0
        await add(conn, client, b"and it goes on")
        assert conn.read() == b"and it goes on"


async def test_discard_counts_what_it_threw_away() -> None:
    async with holding(DATA) as (conn, client):
        assert conn.discard(0) == 0
        assert conn.discard(1) == 1
        assert conn.peek(1) == DATA[1:2]
        assert conn.discard(5000) == 1023
        for everything in ((), (-1,), (-7,)):
            await add(conn, client, DATA)
            assert conn.discard(*everything) == 1024
            assert conn.inbound_buffered() == 0


async def test_read_into() -> None:
    async with holding(DATA) as (conn, _):
        small = bytearray(100)
        assert conn.read_into(small) == 100
        assert small == DATA[:100]
        assert conn.read_into(memoryview(small)[:10]) == 10
        assert small[:10] == DATA[100:110]
        assert conn.read_into(bytearray()) == 0
        words = array.array("I", bytes(4000))
        assert conn.read_into(words) == 1024 - 110
        assert words.tobytes()[: 1024 - 110] == DATA[110:]
        assert conn.inbound_buffered() == 0


async def test_read_into_what_cannot_be_written_consumes_nothing() -> None:
    async with holding(DATA) as (conn, _):
        with pytest.raises((TypeError, BufferError)):
            conn.read_into(b"read-only")
        assert conn.peek() == DATA


async def test_results_are_bytes_of_their_own() -> None:
    async with holding(DATA) as (conn, client):
        results = [conn.peek(), conn.peek(10), conn.next(10), conn.read(10), conn.read()]
        for _ in range(20):
            await add(conn, client, b"\xff" * 8192)
            conn.discard()
        assert results == [DATA, DATA[:10], DATA[:10], DATA[10:20], DATA[20:]]
        assert {type(result) for result in results} == {bytes}


class Narrow(io.RawIOBase):
    """Takes 100 bytes a write, and 300 in all."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(self.taken) >= 300:
            raise OSError("full")
        self.taken += bytes(data)[:100]
        return min(100, len(data))


async def test_write_to_loses_nothing_when_the_file_takes_less() -> None:
    async with holding(DATA) as (conn, _):
        file = Narrow()
        with contextlib.suppress(OSError):
            assert conn.write_to(file) == len(file.taken)
        assert file.taken
        assert file.taken + conn.peek() == DATA


@pytest.mark.parametrize(
    ("says", "error"), [(2.0, TypeError), (-1, ValueError), (len(DATA) + 1, ValueError)]
)
@pytest.mark.parametrize("leased", [False, True])
async def test_write_to_a_file_that_says_nonsense_consumes_nothing(
    says: Any, error: type[Exception], leased: bool
) -> None:
    class File:
        def write(self, _data: bytes) -> Any:
            return says

    def refused(conn: gain.Conn) -> None:
        with pytest.raises(error):
            conn.write_to(File())

    if leased:
        told: list[bytes] = []

        def on_read(conn: gain.Conn, _n: int) -> None:
            refused(conn)
            told.append(conn.next())

        async with connected(Recorder(on_read=on_read)) as (_, client):
            await client.send_all(DATA)
            await until(lambda: sum(map(len, told)) == len(DATA))
        assert b"".join(told) == DATA
    else:
        async with holding(DATA) as (conn, _):
            refused(conn)
            assert conn.next() == DATA


async def test_write_to_a_file_that_fails_consumes_nothing() -> None:
    async with holding(DATA) as (conn, _):
        file = io.BytesIO()
        file.close()
        with pytest.raises(ValueError, match="closed file"):
            conn.write_to(file)
        assert conn.read() == DATA


async def test_what_is_left_stays_as_it_was_while_others_receive() -> None:
    """The engine's buffers are used again by then."""

    def read(conn: gain.Conn, n: int) -> None:
        if conn.context != "keeps its input":
            conn.write(conn.next(n))

    recorder = Recorder(on_read=read)
    async with serving(recorder) as server, await open_client(server) as keeper:
        await until(lambda: recorder.conns)
        conn = recorder.conn
        conn.context = "keeps its input"
        await add(conn, keeper, DATA)
        async with await open_client(server) as other:
            for _ in range(2 * BUFFER_GROUPS[0][0]):
                await other.send_all(b"again")
                assert await read_exactly(other, 5) == b"again"
        assert conn.next() == DATA


async def test_input_buffer_is_a_queue_of_bytes() -> None:
    """Random sizes in and out, against a plain bytearray."""
    rng = random.Random(3)
    model = bytearray()
    async with connected(Recorder()) as (conn, client):

        def take(method: Callable[[int], bytes], size: int) -> bytes:
            data = method(size)
            del model[: len(data)]
            return data

        for _ in range(150):
            piece = rng.randbytes(rng.choice([1, 10, 1000, 5000, 20000]))
            if len(model) + len(piece) < 60000:  # below read_buffer_limit
                await add(conn, client, piece)
                model += piece
            size = rng.randrange(len(model) + 1)
            expected = bytes(model[:size])
            assert conn.peek(size) == expected
            way = rng.randrange(4)
            if way == 0:
                assert take(conn.next, size) == expected
            elif way == 1 and model:
                assert take(conn.read, size) == expected
            elif way == 2:
                del model[: conn.discard(size)]
            elif model:
                target = bytearray(size)
                del model[: conn.read_into(target)]
                assert target == expected
            assert conn.inbound_buffered() == len(model)
        assert conn.peek() == model


# Output


async def test_write_takes_every_kind_of_bytes() -> None:
    words: Any = array.array("I", [1, 2, 3])
    async with connected(Recorder()) as (conn, client):
        conn.write(b"bytes,")
        conn.write(bytearray(b"bytearray,"))
        conn.write(memoryview(b"(memoryview)")[1:-1])
        conn.write(words)
        conn.write(memoryview(b"e-v-e-r-y-")[::2])
        expected = b"bytes,bytearray,memoryview" + words.tobytes() + b"every"
        assert conn.outbound_buffered() == len(expected)
        assert await read_exactly(client, len(expected)) == expected
        await until(lambda: conn.outbound_buffered() == 0)
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError):
                conn.write(wrong)  # type: ignore[arg-type]
        assert conn.outbound_buffered() == 0


@pytest.mark.parametrize("size", [100, 1 << 20])
async def test_write_copies_what_can_change(size: int) -> None:
    async with connected(Recorder()) as (conn, client):
        data = bytearray(b"a" * size)
        conn.write(data)
        conn.write(memoryview(data))
        data[:] = b"b" * size
        data += b"and can be resized"
        assert await read_exactly(client, 2 * size) == b"a" * 2 * size


async def test_write_of_nothing_sends_nothing() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(b"")
        conn.writev([])
        conn.writev([b"", b""])
        assert conn.read_from(io.BytesIO()) == 0
        assert conn.outbound_buffered() == 0
        conn.write(b"something")
        assert await read_exactly(client, 9) == b"something"
        await until(lambda: recorder.values("on_write"))
    assert recorder.values("on_write") == [9]


async def test_writev_keeps_the_order() -> None:
    async with connected(Recorder()) as (conn, client):
        conn.write(b"0")
        conn.writev([b"1", bytearray(b"2"), memoryview(b"3"), b""])
        conn.writev(b"%d" % i for i in range(4, 10))
        conn.writev([b"x" * 10 for _ in range(2000)])  # more than IOV_MAX, which is 1024
        assert conn.outbound_buffered() == 10 + 20000
        assert await read_exactly(client, 20010) == b"0123456789" + b"x" * 20000


async def test_writev_with_something_wrong_in_it_writes_nothing() -> None:
    async with connected(Recorder()) as (conn, client):
        with pytest.raises(TypeError):
            conn.writev([b"one", "two"])  # type: ignore[list-item]
        assert conn.outbound_buffered() == 0
        conn.write(b"three")
        assert await read_exactly(client, 5) == b"three"


async def test_read_from_reads_to_the_end() -> None:
    data = random.Random(1).randbytes(300_000)
    async with connected(Recorder()) as (conn, client):
        assert conn.read_from(io.BufferedReader(io.BytesIO(data))) == len(data)
        assert conn.outbound_buffered() == len(data)
        assert await read_exactly(client, len(data)) == data


async def test_read_from_a_file_that_fails_raises_its_error() -> None:
    file = io.BytesIO(DATA)
    file.close()
    async with connected(Recorder()) as (conn, client):
        with pytest.raises(ValueError, match="closed file"):
            conn.read_from(file)
        conn.write(b"still there")
        assert await read_exactly(client, 11) == b"still there"


async def test_many_writes_arrive_whole_and_in_order() -> None:
    rng = random.Random(2)
    pieces = [rng.randbytes(rng.choice([1, 50, 3000, 70000])) for _ in range(100)]
    recorder = Recorder()
    async with connected(recorder, write_high_water=1 << 30) as (conn, client):
        for piece in pieces:
            conn.write(piece)
        total = sum(map(len, pieces))
        assert conn.outbound_buffered() == total
        assert await read_exactly(client, total) == b"".join(pieces)
        await until(lambda: conn.outbound_buffered() == 0)
        await until(lambda: sum(recorder.values("on_write")) == total)


@pytest.mark.parametrize("size", [1, 2000])
def test_writev_sends_all_buffers_in_order(size: int) -> None:
    """B19: Gain has no writev."""
    pieces = [b"%d," % i * (i % 7) for i in range(size)]

    def write(conn: gain.Conn) -> None:
        conn.writev([bytearray(piece) if i % 2 else piece for i, piece in enumerate(pieces)])
        conn.close()

    handler = Recorder(on_accept=write)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == b"".join(pieces)


def test_read_from_an_empty_file_writes_nothing() -> None:
    """B9: Gain then sends 4,096 bytes of garbage."""
    results = []

    def write(conn: gain.Conn) -> None:
        results.append(conn.read_from(io.BytesIO(b"")))
        results.append(conn.outbound_buffered())
        results.append(conn.read_from(io.BytesIO(b"all there is")))
        results.append(conn.read_from(io.BytesIO(b"")))
        conn.close()

    handler = Recorder(on_accept=write)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == b"all there is"
    assert results == [0, 0, 12, 0]
    assert handler.values("on_write") == [12]


def test_discard_of_a_negative_count_is_all_that_is_there() -> None:
    """B10: Gain returns -1, and has one byte more in its buffer than before."""
    results = []

    def discard(conn: gain.Conn, n: int) -> None:
        assert n == 10
        for count in (0, 3, 100):
            results.append((conn.discard(count), conn.inbound_buffered(), conn.peek()))
        results.append((conn.discard(-1), conn.inbound_buffered(), conn.peek()))
        handler.actions["on_read"] = lambda conn, n: results.append(
            (conn.discard(-1), conn.inbound_buffered(), conn.next())
        )
        conn.write(b"next")

    handler = Recorder(on_read=discard)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"0123456789")
        assert receive_exactly(client, 4) == b"next"
        client.sendall(b"abcde")
        wait_until(lambda: len(results) == 5)
    assert results == [
        (0, 10, b"0123456789"),
        (3, 7, b"3456789"),
        (7, 0, b""),
        (0, 0, b""),
        (5, 0, b""),
    ]


def test_bytes_are_right_whatever_the_sizes() -> None:
    """B11: Gain's pool gives a ring of 8,192 bytes a mapping of 12,288, and bytes go wrong."""
    generator = random.Random(11)
    message = pattern(4 * MIB)

    def take_some(conn: gain.Conn, n: int) -> None:
        while conn.inbound_buffered() > conn.context:
            size = generator.choice([1, 7, 4096, 8192, 12_288, 12_289, conn.inbound_buffered()])
            size = min(size, conn.inbound_buffered())
            ahead = conn.peek(size)
            scratch = bytearray(size)
            if size % 2:
                assert conn.read_into(scratch) == size
            else:
                scratch[:] = conn.next(size)
            assert scratch == ahead
            conn.write(scratch)
            conn.context = generator.choice([0, 0, 1, 4000])

    def begin(conn: gain.Conn) -> None:
        conn.context = 0

    handler = Recorder(on_accept=begin, on_read=take_some)
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server) as client,
        in_thread(receive_exactly, client, len(message) - 4000) as answer,
    ):
        at = 0
        while at < len(message):
            size = generator.choice([1, 100, 4095, 8192, 12_288, 100_000])
            client.sendall(message[at : at + size])
            at += size
    assert answer == [message[:-4000]]
