"""The judges of bytes and messages: what they take, and what they do not."""

from __future__ import annotations

import itertools

import pytest
from peers.books import NEVER, SURE, Clock, Lost, MessageBook, StreamBook, content

A, B = content(1, 100), content(2, 50)


def book() -> StreamBook:
    return StreamBook(Clock())


def test_all_in_order() -> None:
    one = book()
    for data in (A, B):
        one.sent(one.offer(data), len(data))
    for at in range(0, 150, 7):
        one.take("us", (A + B)[at : at + 7])
    one.check(whole=True)


@pytest.mark.parametrize(
    "taken",
    [A[:99] + B, A + A + B, B + A, A + B[:10] + B[11:], A + bytes(50), A + B + b"x"],
    ids=["hole", "twice", "order", "hole inside", "other", "more"],
)
def test_what_is_wrong(taken: bytes) -> None:
    one = book()
    for data in (A, B):
        one.sent(one.offer(data), len(data))
    one.take("us", taken)
    with pytest.raises(Lost):
        one.check(whole=False)


def test_too_little() -> None:
    one = book()
    one.sent(one.offer(A), 100)
    one.take("us", A[:99])
    one.check(whole=False)
    with pytest.raises(Lost):
        one.check(whole=True)


def test_a_part_of_which_nobody_knows_how_much_was_sent() -> None:
    for sent in (0, 3, 100):
        one = book()
        one.sent(one.offer(A), 0, 100)
        one.sent(one.offer(B), 50)
        one.take("us", A[:sent] + B)
        one.check(whole=True)
    one.take("us", A[sent:])
    one.take("us", b"x")
    with pytest.raises(Lost):
        one.check(whole=False)


def test_what_was_not_sent_must_not_come() -> None:
    one = book()
    one.sent(one.offer(A), 0)
    one.take("us", A[:1])
    with pytest.raises(Lost):
        one.check(whole=False)


def test_parts_at_the_same_time_come_in_any_order() -> None:
    for taken in (A + B, B + A):
        one = book()
        a, b = one.offer(A), one.offer(B)
        one.sent(a, 100)
        one.sent(b, 50)
        one.take("us", taken)
        one.check(whole=True)
    one = book()
    a, b = one.offer(A), one.offer(B)
    one.sent(a, 100)
    one.sent(b, 50)
    one.take("us", A[:20] + B + A[20:])
    with pytest.raises(Lost):
        one.check(whole=True)


def test_a_divided_part_has_others_in_between() -> None:
    one = book()
    a, b = one.offer(A, divided=True), one.offer(B)
    one.sent(b, 50)
    one.sent(a, 100)
    one.take("us", A[:20] + B + A[20:])
    one.check(whole=True)


def test_two_readers_share() -> None:
    one = book()
    one.sent(one.offer(A), 100)
    one.take("us", A[:10])
    one.take("them", A[10:20])
    one.take("us", A[20:])
    one.check(whole=True)
    one.take("them", A[99:])
    with pytest.raises(Lost):
        one.check(whole=False)


def messages(*states: str) -> tuple[MessageBook, list[bytes]]:
    one = MessageBook(Clock(), itertools.count(1))
    sent = []
    for state in states:
        message = one.offer("peer", 20)
        one.sent(message, state)
        sent.append(message.data)
    return one, sent


def test_messages() -> None:
    one, [a, b] = messages(SURE, SURE)
    one.take("us", a, 100)
    with pytest.raises(Lost):
        one.check(lost_max=0)
    one.check(lost_max=1)
    one.take("us", b[:10], 10)
    one.check(lost_max=0)
    with pytest.raises(Lost):
        one.take("us", a, 100)


@pytest.mark.parametrize("how", ["order", "never", "cut", "unknown"])
def test_what_is_wrong_with_messages(how: str) -> None:
    one, [a, b, c] = messages(SURE, SURE, NEVER)

    def receive() -> None:
        if how == "order":
            one.take("us", b, 100)
            one.take("us", a, 100)
        elif how == "never":
            one.take("us", c, 100)
        elif how == "cut":
            one.take("us", a[:15], 100)
        else:
            one.take("us", b"nobody sent this", 100)
        one.check(lost_max=5)

    with pytest.raises(Lost):
        receive()
