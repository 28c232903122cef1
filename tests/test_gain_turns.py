"""A worker's turn over several connections, on an engine that does what the test says."""

from __future__ import annotations

from typing import Any

import pytest
from gain_engine import ScriptedEngine, steady_engine

from uring_trio import gain
from uring_trio.gain._life import Way


def deliver(engine: ScriptedEngine, number: int, data: bytes) -> None:
    """A piece of input has come, and no turn yet."""
    peer = engine.peers[number]
    peer.sent += data
    peer.unread += data
    engine.links[number].receive_step()


def note(engine: ScriptedEngine, connection: Any, data: bytes) -> None:
    """The same by the short way, as `_ring.route` notes input."""
    assert connection.way is Way.SMALL
    connection.inbound.lease(data, 0, len(data))
    connection.ready = True
    engine.turn.ready.append(connection)


class Noting(gain.EventHandler):
    """Takes what comes, and notes it."""

    def __init__(self) -> None:
        self.notes: list[object] = []

    def on_read(self, conn: gain.Conn, n: int) -> None:
        self.notes.append(conn.next(n))

    def on_eof(self, conn: gain.Conn) -> None:
        self.notes.append("end")


@pytest.mark.fast_ways
def test_what_is_written_behind_a_send_that_began_in_this_turn_waits_for_it() -> None:
    class Writing(gain.EventHandler):
        def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.discard()
            first.conn.write(b"second")

    engine = steady_engine(Writing())
    first, peer = engine.connect()
    engine.connect()
    engine.take_turn()
    peer.window = 3
    first.conn.write(b"first")  # as a task may: its send is for the end of the turn
    note(engine, first, b"x")  # and this is answered before
    deliver(engine, 1, b"x")
    engine.take_turn()
    assert peer.received == b"fir"
    link = engine.links[0]
    while link.flights.get("send"):
        peer.window += 100
        link.send_step()
        engine.take_turn()
    assert peer.received == b"firstsecondsecond"


@pytest.mark.parametrize(
    "short",
    [pytest.param(True, marks=pytest.mark.fast_ways), False],
    ids=["short way", "every look"],
)
def test_who_does_not_answer_is_watched_beside_its_receive(*, short: bool) -> None:
    engine = steady_engine(Noting())
    connection, _ = engine.connect()
    engine.take_turn()
    (link,) = engine.links
    assert set(link.flights) == {"receive"}
    if short:
        note(engine, connection, b"x")
    else:
        deliver(engine, 0, b"x")
    assert connection.way is (Way.SMALL if short else Way.SETTLED)
    engine.take_turn()
    assert set(link.flights) == {"receive", "watch"}


def test_what_was_on_its_way_when_reading_was_paused_is_told_when_it_goes_on() -> None:
    handler = Noting()
    engine = steady_engine(handler)
    connection, peer = engine.connect()
    engine.take_turn()
    connection.conn.pause_reading()
    engine.take_turn()
    (link,) = engine.links
    assert link.flights["receive"] == "stopping"
    connection.intake.completed(1, b"x", last=False)
    peer.end = 0
    link.receive_step()
    engine.take_turn()
    assert handler.notes == []
    connection.conn.resume_reading()
    engine.take_turn()
    assert handler.notes == [b"x", "end"]


def test_a_peer_that_reads_no_more_and_sends_for_ever_is_let_go() -> None:
    """What it had sent when it was lost is delivered, and not what it sends from then on."""
    handler = Noting()
    engine = steady_engine(handler)
    connection, peer = engine.connect()
    engine.take_turn()
    peer.unread += b"0123456789"
    connection.lose(BrokenPipeError())
    engine.take_turn()
    for _ in range(5):
        peer.unread += b"and more"
        for step in engine.links[0].steps():
            step()
        engine.take_turn()
    assert connection not in engine.open
    assert handler.notes == [b"01234567", b"89and mo"]
