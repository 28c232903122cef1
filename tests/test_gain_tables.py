"""The tables of a connection: each state and event, and that they say what they mean."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_trio.gain import _datagram, _halves, _life, _patience, _tls
from uring_trio.gain._errors import EndOfStream
from uring_trio.gain._halves import (
    Flight,
    FlightEvent,
    Inbound,
    Input,
    InputEvent,
    Outbound,
    Output,
    OutputEvent,
    Pieces,
    PiecesEvent,
    step,
)
from uring_trio.gain._life import (
    Due,
    Holder,
    Life,
    Told,
    Wanted,
    Way,
    callback_due,
    wanted,
    way_of,
)

if TYPE_CHECKING:
    import enum
    from collections.abc import Iterator

# A row for each state, a column for each event; "-" is what cannot happen.
INBOUND = """
             PAUSE        RESUME    FILL         ROOM         END          TELL LOSE        SHUT       DISCARD    OVER
OPEN         PAUSED       OPEN      FULL         OPEN         ENDED        -    LOST        SHUT       -          OVER
PAUSED       PAUSED       OPEN      PAUSED_FULL  PAUSED       ENDED_PAUSED -    LOST_PAUSED SHUT       -          OVER
FULL         PAUSED_FULL  FULL      FULL         OPEN         ENDED        -    LOST_FULL   SHUT       -          OVER
PAUSED_FULL  PAUSED_FULL  FULL      PAUSED_FULL  PAUSED       ENDED_PAUSED -    LOST_PAUSED SHUT       -          OVER
ENDED        ENDED_PAUSED ENDED     ENDED        ENDED        ENDED        TOLD GONE        SHUT_ENDED -          OVER
ENDED_PAUSED ENDED_PAUSED ENDED     ENDED_PAUSED ENDED_PAUSED ENDED_PAUSED TOLD GONE        SHUT_ENDED -          OVER
TOLD         TOLD         TOLD      TOLD         TOLD         TOLD         -    GONE        SHUT_ENDED -          OVER
LOST         LOST_PAUSED  LOST      LOST_FULL    LOST         GONE         -    LOST        SHUT       -          OVER
LOST_PAUSED  LOST_PAUSED  LOST      LOST_PAUSED  LOST_PAUSED  GONE         -    LOST_PAUSED SHUT       -          OVER
LOST_FULL    LOST_PAUSED  LOST_FULL LOST_FULL    LOST         GONE         -    LOST_FULL   SHUT       -          OVER
GONE         GONE         GONE      GONE         GONE         GONE         -    GONE        SHUT_ENDED -          OVER
SHUT         SHUT         SHUT      SHUT         SHUT         SHUT_ENDED   -    SHUT        SHUT       DISCARDING OVER
SHUT_ENDED   SHUT_ENDED   SHUT_ENDED SHUT_ENDED  SHUT_ENDED   SHUT_ENDED   -    SHUT_ENDED  SHUT_ENDED -          OVER
DISCARDING   -            -         DISCARDING   DISCARDING   SHUT_ENDED   -    -           -          -          OVER
OVER         -            -         OVER         OVER         OVER         -    -           -          -          OVER
"""
FLIGHT = """
          ARM   CANCEL    LAST
IDLE      ARMED -         -
ARMED     -     CANCELING IDLE
CANCELING -     -         IDLE
"""
PIECES = """
          FILLED    LARGE DWINDLED  IDLE
SMALL     LARGE     -     -         SMALL
LARGE     LARGE     LARGE SHRINKING LARGE
SHRINKING SHRINKING LARGE SHRINKING SMALL
"""
OUTBOUND = """
            FILL        LOW      END         FIN   CLOSE    CUT
OPEN        FULL        OPEN     ENDING      -     DRAINING CUT
FULL        FULL        OPEN     ENDING_FULL -     DRAINING CUT
ENDING      ENDING_FULL ENDING   ENDING      ENDED DRAINING CUT
ENDING_FULL ENDING_FULL ENDING   ENDING_FULL -     DRAINING CUT
ENDED       -           ENDED    ENDED       -     SHUT     CUT
DRAINING    DRAINING    DRAINING -           SHUT  -        CUT
SHUT        -           SHUT     -           -     -        CUT
CUT         CUT         CUT      CUT         -     CUT      CUT
"""
LIFE = """
           READY LEAVE   LOSE CLOSE    FLUSHED FLUSHED_UNREAD DISCARDED ABORT  RESET     QUIET
HANDSHAKE  OPEN  -       -    ENDING   -       -              -         ENDING RESETTING -
OPEN       -     LEAVING LOST FLUSHING -       -              -         ENDING RESETTING -
LEAVING    -     LEAVING LOST FLUSHING -       -              -         ENDING RESETTING -
LOST       -     LOST    LOST ENDING   -       -              -         ENDING RESETTING -
FLUSHING   -     -       -    -        ENDING  DISCARDING     -         ENDING RESETTING -
DISCARDING -     -       -    -        -       -              ENDING    ENDING RESETTING -
ENDING     -     -       -    -        -       -              -         -      -         CLOSED
RESETTING  -     -       -    -        -       -              -         -      -         CLOSED
CLOSED     -     -       -    -        -       -              -         -      -         -
"""
HOLDER = """
       TASK LEND BORROW RETURN
NOBODY TASK POOL -      -
TASK   -    -    -      NOBODY
POOL   -    -    THREAD NOBODY
THREAD -    -    -      NOBODY
"""
TOLD = """
        ACCEPT CLOSE
NOTHING ACCEPT -
ACCEPT  -      CLOSE
CLOSE   -      -
"""
STAGE = """
        BEGIN   BEGIN_LEFT DEADLINE LATE  OVER FORGET
FREE    WAITING LEFT       FREE     FREE  FREE FREE
WAITING WAITING LEFT       LEFT     AGAIN OVER FREE
AGAIN   WAITING LEFT       LEFT     OVER  OVER FREE
OVER    WAITING LEFT       LEFT     OVER  OVER FREE
LEFT    WAITING LEFT       LEFT     LEFT  LEFT FREE
"""
TLS_PEER = """
          DONE END   GIVE_UP
HANDSHAKE OPEN -     GIVEN_UP
OPEN      -    ENDED OPEN
ENDED     -    -     ENDED
GIVEN_UP  -    -     GIVEN_UP
"""
TLS_OURS = """
                STALL           FEED    CLOSE           SEND
WRITING         STALLED         WRITING CLOSING         -
STALLED         -               WRITING CLOSING_STALLED -
CLOSING         CLOSING_STALLED CLOSING CLOSING         SENT
CLOSING_STALLED -               CLOSING CLOSING_STALLED -
SENT            -               SENT    SENT            -
"""
DATAGRAMS = """
        STOP    CLOSE   RELEASE
OPEN    STOPPED CLOSING -
STOPPED STOPPED CLOSING -
CLOSING CLOSING CLOSING CLOSED
CLOSED  CLOSED  CLOSED  -
"""
TABLES: list[tuple[str, Any, Any, Any]] = [
    (INBOUND, _halves.NEXT_INPUT, Input, InputEvent),
    (FLIGHT, _halves.NEXT_FLIGHT, Flight, FlightEvent),
    (PIECES, _halves.NEXT_PIECES, Pieces, PiecesEvent),
    (OUTBOUND, _halves.NEXT_OUTPUT, Output, OutputEvent),
    (LIFE, _life.NEXT, _life.State, _life.Event),
    (HOLDER, _life.NEXT_HOLDER, Holder, _life.HolderEvent),
    (TOLD, _life.NEXT_TOLD, Told, _life.ToldEvent),
    (STAGE, _patience.NEXT_STAGE, _patience.Stage, _patience.StageEvent),
    (DATAGRAMS, _datagram.NEXT_SOCKET, _datagram.SocketState, _datagram.SocketEvent),
    (TLS_PEER, _tls.NEXT_PEER, _tls.Peer, _tls.PeerEvent),
    (TLS_OURS, _tls.NEXT_OURS, _tls.Ours, _tls.OurEvent),
]


def rows() -> Iterator[tuple[Any, Any, Any, str, str]]:
    for text, table, states, events in TABLES:
        header, *lines = text.strip().splitlines()
        columns = header.split()
        assert columns == [event.name for event in events]
        assert [line.split()[0] for line in lines] == [state.name for state in states]
        for line in lines:
            name, *following = line.split()
            assert len(following) == len(columns)
            for column, after in zip(columns, following, strict=True):
                yield table, states[name], events[column], states.__module__, after


@pytest.mark.parametrize(
    ("table", "state", "event", "after"),
    [
        pytest.param(table, state, event, after, id=f"{where[18:]}-{state.name}-{event.name}")
        for table, state, event, where, after in rows()
    ],
)
def test_each_state_and_event(
    table: Any, state: enum.IntEnum, event: enum.IntEnum, after: str
) -> None:
    if after == "-":
        with pytest.raises(AssertionError, match=f"^{event.name} in {state.name}$"):
            step(table, state, event)
    else:
        assert step(table, state, event).name == after


# A model of the input: what its state is made of, each by itself

EVENTS = st.lists(st.sampled_from(list(InputEvent)), max_size=20)


class Conditions:
    """What has been said of the input, and what follows."""

    def __init__(self) -> None:
        self.paused = self.full = self.ended = self.told = False
        self.lost = self.shut = self.discarding = self.over = False

    def may(self, event: InputEvent) -> bool:
        name = event.name
        if name == "TELL":
            return self.ended and not (self.told or self.lost or self.shut or self.over)
        if name == "DISCARD":
            return self.shut and not (self.ended or self.discarding or self.over)
        if self.over or (self.discarding and not self.ended):
            return name in ("FILL", "ROOM", "END", "OVER")
        return True

    def tell(self, event: InputEvent) -> None:
        name = event.name
        if name in ("PAUSE", "RESUME"):
            self.paused = name == "PAUSE"
        elif name in ("FILL", "ROOM"):
            self.full = name == "FILL"
        elif name == "DISCARD":
            self.discarding = True
        elif name == "END":
            self.ended = True
        elif name == "TELL":
            self.told = True
        elif name == "LOSE":
            self.lost = self.lost or not self.shut
        elif name == "SHUT":
            self.shut = True
        else:
            self.over = True

    @property
    def announces(self) -> bool:
        # What came before a peer's going is told of in any case, and a pause holds the rest back.
        reads = not (self.shut or self.over or self.told)
        return reads and (self.lost or not self.paused)

    @property
    def receives(self) -> bool:
        if self.over or self.ended:
            return False
        if self.shut:
            return self.discarding
        return not (self.paused or self.full)


@given(EVENTS)
def test_input_is_what_was_said_of_it(events: list[InputEvent]) -> None:
    inbound, conditions = Inbound(b"x" * 10, 100), Conditions()
    inbound.lease(inbound.pool, 0, 10)
    told_before_loss = False
    for event in events:
        if not conditions.may(event):
            with pytest.raises(AssertionError):
                inbound.step(event)
            continue
        if event is InputEvent.LOSE and conditions.told:
            told_before_loss = True
        inbound.step(event)
        conditions.tell(event)
        if not told_before_loss:
            assert inbound.announces is conditions.announces
        # Once the peer has gone the limit is judged anew, by whoever resumes or takes some.
        if not (conditions.lost and conditions.full):
            assert (inbound.state in _halves.RECEIVING) is conditions.receives
        if not conditions.over:
            assert inbound.has_ended is conditions.ended or conditions.lost


@given(st.lists(st.sampled_from(list(OutputEvent)), max_size=20))
def test_output_that_has_ended_takes_nothing_more(events: list[OutputEvent]) -> None:
    outbound = Outbound(100)
    ended = False
    for event in events:
        try:
            outbound.step(event)
        except AssertionError:
            continue
        ended = ended or event.name in ("END", "CLOSE", "CUT")
        assert outbound.takes is not ended


@given(st.lists(st.sampled_from(list(_life.Event)), max_size=20))
def test_a_life_goes_one_way(events: list[_life.Event]) -> None:
    life = Life(1, _life.State.HANDSHAKE)
    for event in events:
        before = life.state
        try:
            life.step(event)
        except AssertionError:
            assert life.state is before
            continue
        assert life.state >= before
        assert (life.user != 0) is (life.state <= _life.State.LOST)


@pytest.mark.parametrize("state", list(_life.State))
@pytest.mark.parametrize("holder", list(Holder))
def test_who_may_use_it(state: _life.State, holder: Holder) -> None:
    life = life_of(state, holder)
    if state > _life.State.LOST or (state is _life.State.LOST and holder is Holder.TASK):
        assert life.user == 0
    elif holder is Holder.POOL:
        assert life.user == _life.NOBODY
    elif holder is Holder.THREAD:
        assert life.user == THREAD
    else:
        assert life.user == HOME


def test_a_thread_that_has_closed_it_gets_it_back_no_more() -> None:
    life = Life(HOME)
    life.lend()
    assert life.borrow(THREAD)
    life.revoke()
    assert life.user == 0
    life.give_back()
    assert life.user == HOME  # until the close, which follows


def test_a_thread_that_comes_too_late_begins_nothing() -> None:
    life = Life(HOME)
    life.lend()
    life.step(_life.Event.ABORT)
    assert not life.borrow(THREAD)
    assert life.user == 0


def test_a_thread_is_told_of_what_came_before_the_peer_went() -> None:
    life = Life(HOME)
    life.step(_life.Event.LOSE)
    life.lend()
    assert life.borrow(THREAD)
    assert life.user == THREAD


def test_the_first_error_is_told_and_counts_for_more_than_an_end() -> None:
    end, first, second = EndOfStream(), OSError(1), OSError(2)
    life = Life(HOME)
    assert life.blame(end)
    assert life.blame(first)
    assert not life.blame(second)
    assert not life.blame(end)
    assert life.err is first


def test_no_error_counts_once_all_was_sent() -> None:
    for state in WAY:
        life = life_of(state, Holder.NOBODY)
        assert life.blame(OSError(1)) is (state is not _life.State.DISCARDING)


# What is due and what is wanted, over all there is

HOME, THREAD = 1, 2
WAY: dict[_life.State, tuple[_life.Event, ...]] = {
    _life.State.OPEN: (),
    _life.State.LEAVING: (_life.Event.LEAVE,),
    _life.State.LOST: (_life.Event.LOSE,),
    _life.State.FLUSHING: (_life.Event.CLOSE,),
    _life.State.DISCARDING: (_life.Event.CLOSE, _life.Event.FLUSHED_UNREAD),
    _life.State.ENDING: (_life.Event.ABORT,),
    _life.State.RESETTING: (_life.Event.RESET,),
    _life.State.CLOSED: (_life.Event.ABORT, _life.Event.QUIET),
}


def life_of(state: _life.State, holder: Holder, told: Told = Told.ACCEPT) -> Life:
    life = Life(HOME)
    if told is not Told.NOTHING:
        life.tell(_life.ToldEvent.ACCEPT)
    if told is Told.CLOSE:
        life.tell(_life.ToldEvent.CLOSE)
    if state is _life.State.HANDSHAKE:
        life.state = state
    if holder is Holder.TASK:
        life.run_as_task()
    elif holder is not Holder.NOBODY:
        life.lend()
        if holder is Holder.THREAD:
            life.borrow(THREAD)
    for event in WAY.get(state, ()):
        life.step(event)
    return life


def all_there_is() -> Iterator[tuple[Inbound, Outbound, Life]]:
    """Each combination that decides; the objects are the same ones each time."""
    inbound, outbound = Inbound(b"abc", 100), Outbound(100)
    for state, holder, told in itertools.product(_life.State, Holder, Told):
        life = life_of(state, holder, told)
        for inbound.state, (inbound.lease_size, inbound.fresh), inbound.rest in itertools.product(
            Input, ((0, 0), (3, 0), (3, 3)), (0, 5)
        ):
            for outbound.state, (outbound.size, outbound.written) in itertools.product(
                Output, ((0, 0), (4, 0), (0, 2))
            ):
                yield inbound, outbound, life


def test_what_is_due_over_all_there_is() -> None:
    seen = set()
    for inbound, outbound, life in all_there_is():
        due = callback_due(inbound, outbound, life)
        seen.add(due)
        if life.is_busy:
            assert due in (Due.NOTHING, Due.GIVE_UP)  # never two callbacks at once
        if due is Due.NOTHING:
            continue
        if due is Due.ACCEPT:
            assert life.told is Told.NOTHING
            assert life.is_open
            continue
        if due is not Due.GIVE_UP:
            assert life.told is not Told.NOTHING
        if due is Due.READ:
            assert life.is_open
            assert inbound.unannounced()
        elif due is Due.WROTE:
            assert outbound.written
        elif due is Due.EOF:
            assert not inbound.unannounced()  # every byte before it was announced
        elif due is Due.CLOSED:
            assert life.state is _life.State.CLOSED
            assert life.told is Told.ACCEPT
            assert not outbound.written
        elif due is Due.GIVE_UP:
            assert life.state is _life.State.LOST
        elif due is Due.LEAVE:
            assert life.state is _life.State.LEAVING
        else:
            assert due is Due.BOTH_ENDED
            assert outbound.state is Output.ENDED
    assert seen == set(Due)


def test_what_is_wanted_over_all_there_is() -> None:
    seen = Wanted.NOTHING
    for inbound, outbound, life in all_there_is():
        want = wanted(inbound, outbound, life)
        seen |= want
        if life.is_over:
            assert want in (Wanted.CLOSE, Wanted.NOTHING)
            assert (want == Wanted.CLOSE) is (life.state is not _life.State.CLOSED)
            continue
        assert not want & Wanted.CLOSE
        assert want & (Wanted.RECEIVE | Wanted.WATCH) != Wanted.RECEIVE | Wanted.WATCH
        if want & Wanted.RECEIVE:
            assert not inbound.has_ended
            assert not outbound.is_full
        if want & (Wanted.FIN | Wanted.FINISH):
            assert outbound.is_out
    assert seen == Wanted.RECEIVE | Wanted.WATCH | Wanted.FIN | Wanted.FINISH | Wanted.CLOSE


def test_the_short_way_is_for_those_with_nothing_but_input_and_output() -> None:
    seen = set()
    for inbound, outbound, life in all_there_is():
        inbound.receive = Flight.IDLE
        assert way_of(inbound, outbound, life) is Way.SETTLED
        inbound.receive = Flight.ARMED
        way = way_of(inbound, outbound, life)
        seen.add(way)
        if way is not Way.SETTLED:
            assert (inbound.state, outbound.state, life.state) == (0, 0, _life.State.OPEN)
            assert callback_due(inbound, outbound, life) in (Due.READ, Due.WROTE, Due.NOTHING)
            assert wanted(inbound, outbound, life) == Wanted.RECEIVE
            assert way_of(inbound, outbound, life, deadlines=1) is Way.SETTLED
    assert seen == {Way.SETTLED, Way.SMALL}


def test_the_short_way_follows_the_pieces() -> None:
    inbound, outbound = Inbound(b"", 100, _halves.Sizes(small=8, dwindled=2)), Outbound(100)
    life = life_of(_life.State.OPEN, Holder.NOBODY)
    inbound.step_receive(FlightEvent.ARM)
    assert not inbound.note_small(7)
    assert way_of(inbound, outbound, life) is Way.SMALL
    assert inbound.note_small(8)
    assert way_of(inbound, outbound, life) is Way.LARGE
    assert not inbound.note_small(8)  # what was on its way
    for sizes, pieces in (
        ([8, 9, 8], Pieces.LARGE),
        ([8], Pieces.SHRINKING),
        ([9], Pieces.LARGE),
        ([8, 8], Pieces.SHRINKING),
    ):
        for size in sizes:
            inbound.note_large(size)
        assert inbound.pieces is pieces
    inbound.step_pieces(PiecesEvent.IDLE)
    assert way_of(inbound, outbound, life) is Way.SMALL


def test_a_handler_that_does_not_answer_is_watched_for() -> None:
    inbound, outbound = Inbound(b"", 100), Outbound(100)
    life = life_of(_life.State.OPEN, Holder.NOBODY)
    both = Wanted.RECEIVE | Wanted.WATCH
    assert wanted(inbound, outbound, life, unanswered=True) == both
    outbound.add(b"answer", 6)
    assert wanted(inbound, outbound, life, unanswered=True) == Wanted.RECEIVE
