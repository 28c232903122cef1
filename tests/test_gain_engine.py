"""A connection on an engine that gives every order, by seed: its books balance in all of them."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from gain_engine import HAPPENINGS, ScriptedEngine

from uring_trio import gain

SEEDS = 40
STEPS_MAX = 3000
ENDS = ["fin", "reset", "close", "abort", "send_eof", "leave", "deadline", "end_now"]


class Echo(gain.EventHandler):
    """Echoes, and notes in which order it was told of what."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.received = bytearray()
        self.told = 0
        self.written = 0
        self.err: BaseException | None = None

    def on_accept(self, conn: gain.Conn) -> None:
        self.names.append("on_accept")

    def on_read(self, conn: gain.Conn, n: int) -> None:
        self.names.append("on_read")
        self.told += n
        buffered = conn.inbound_buffered()
        assert 0 < n <= buffered
        data = conn.next()
        assert len(data) == buffered
        self.received += data
        conn.write(data)

    def on_write(self, conn: gain.Conn, n: int) -> None:
        assert n > 0
        self.names.append("on_write")
        self.written += n

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        self.names.append("on_close")
        self.err = err


class HalfClosing(Echo):
    def on_eof(self, conn: gain.Conn) -> None:
        self.names.append("on_eof")
        conn.send_eof()


def act(engine: ScriptedEngine, connection: Any, peer: Any, end: str) -> None:
    """The peer, or we, begin to end it."""
    if end == "fin":
        peer.end = 0
    elif end == "reset":
        peer.end = errno.ECONNRESET
    elif end == "leave":
        connection.leave()
    elif end == "deadline":
        connection.set_deadline("idle", 1)
        if engine.timers:
            engine.let_time_pass()
    elif end == "end_now":
        connection.end_now()
    elif connection.life.user == engine.thread:
        getattr(connection, end)()


def run(seed: int, handler: Echo, end: str, elsewhere: dict[str, bool]) -> Any:
    engine = ScriptedEngine(seed, handler, read_buffer_limit=40, write_high_water=30)
    engine.names.update(elsewhere)
    engine.plain = not elsewhere
    rng = engine.rng
    connection, peer = engine.connect()
    total, ended = rng.randint(0, 120), False
    if total and rng.random() < 0.5:  # a request that is there already
        peer.sent += rng.randbytes(rng.randint(1, min(total, 30)))
        peer.unread += peer.sent
    engine.take_turn()
    for _ in range(STEPS_MAX):
        if connection not in engine.open:
            break
        if len(peer.sent) < total and not ended and rng.random() < 0.5:
            piece = rng.randbytes(rng.randint(1, 30))
            peer.sent += piece
            peer.unread += piece
        if rng.random() < 0.4:
            peer.window += rng.randint(0, 20)
        if rng.random() < 0.05 and connection.life.user == engine.thread:
            connection.intake.pause()
        if rng.random() < 0.2 and connection.life.user == engine.thread:
            connection.intake.resume()
        if not ended and len(peer.sent) >= total and rng.random() < 0.2:
            ended = True
            act(engine, connection, peer, end)
        if ended and end == "send_eof" and rng.random() < 0.05 and peer.end is None:
            peer.end = 0
        if not engine.step():
            peer.window += 10
            if connection.life.user == engine.thread:
                connection.intake.resume()
            if ended and engine.timers and rng.random() < 0.3:
                engine.let_time_pass()
            elif ended and peer.end is None and rng.random() < 0.1:
                peer.end = 0
            engine.take_turn()
    assert connection not in engine.open, f"{connection.conn!r} does not end"
    return peer, engine


@pytest.mark.parametrize(
    "elsewhere",
    [{}, {"on_read": False}, {"on_read": True}, {"on_read": False, "on_close": False}],
    ids=["def", "async def", "async_handler", "async on_close"],
)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", [Echo, HalfClosing])
def test_the_books_balance(kind: type[Echo], end: str, elsewhere: dict[str, bool]) -> None:
    for seed in range(SEEDS):
        handler = kind()
        try:
            peer, engine = run(seed, handler, end, elsewhere)
            check(handler, peer, engine, end)
        except Exception as exc:
            raise AssertionError(f"seed {seed}") from exc


def check(handler: Echo, peer: Any, engine: ScriptedEngine, end: str) -> None:
    names = handler.names
    assert names.count("on_accept") == names.count("on_close") == 1
    assert names[0] == "on_accept"
    assert names[-1] == "on_close"
    assert peer.sent.startswith(handler.received)
    assert handler.received.startswith(peer.received)
    assert handler.written == len(peer.received)
    assert not engine.timers
    assert not engine.running
    assert all(link.closed for link in engine.links)
    if end == "fin" and not isinstance(handler.err, TimeoutError):  # it has taken nothing for long
        # All that came before the end was told of, and all answers are out.
        assert isinstance(handler.err, gain.EndOfStream)
        assert handler.received == peer.sent == peer.received
        assert not peer.reset
    if end == "close" and handler.err is None:
        assert peer.received == handler.received
    if end == "reset":
        assert isinstance(handler.err, ConnectionResetError)


def test_every_order_is_given() -> None:
    """What the engine may do it does, or the other tests show less than they say."""
    seen: set[str] = set()
    for seed in range(6 * len(ENDS)):
        for in_thread in (False, True):
            end = ENDS[seed % len(ENDS)]
            _, engine = run(seed, Echo(), end, {"on_read": in_thread})
            seen |= engine.seen
        _, engine = run(seed, HalfClosing(), ENDS[seed % len(ENDS)], {})
        seen |= engine.seen
    assert seen == HAPPENINGS
