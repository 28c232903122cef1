"""How the reactor chooses a connection's worker; Gain's own vectors where it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from uring_trio.gain._accept import make_balancer
from uring_trio.gain._address import Address
from uring_trio.gain._config import make_config

if TYPE_CHECKING:
    from collections.abc import Sequence

PEER = Address("tcp", ("10.3.2.1", 1234))
IDLE = [0, 0, 0, 0]

# gain.md, section 5: for four workers, hashed with the port.
GAIN_VECTORS = [
    (("10.3.2.1", 1234), 2),
    (("10.123.5.1", 51234), 0),
    (("10.123.5.31", 52354), 2),
    (("192.123.19.1", 1234), 1),
]


def balancer(load_balancing: Any, **options: Any) -> Any:
    return make_balancer(make_config(load_balancing=load_balancing, **options))


def test_round_robin_is_the_default_and_takes_turns_from_the_first() -> None:
    choose = make_balancer(make_config())
    assert [choose(IDLE, PEER) for _ in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_round_robin_does_not_look_at_counts() -> None:
    choose = balancer("round_robin")
    assert [choose([9, 0], PEER) for _ in range(4)] == [0, 1, 0, 1]


def test_each_server_has_turns_of_its_own() -> None:
    config = make_config()
    first, second = make_balancer(config), make_balancer(config)
    assert first(IDLE, PEER) == 0
    assert first(IDLE, PEER) == 1
    assert second(IDLE, PEER) == 0


def test_least_connections_takes_the_first_of_the_least() -> None:
    choose = balancer("least_connections")
    counts = [1, 0, 2, 1]
    picks = []
    for _ in range(8):
        index = choose(counts, PEER)
        counts[index] += 1
        picks.append(index)
    assert picks == [1, 0, 1, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(("peer", "index"), GAIN_VECTORS)
def test_source_hash_has_gains_vectors_if_compatible(peer: tuple[str, int], index: int) -> None:
    choose = balancer("source_ip_hash", gain_compatible=True)
    assert [choose(IDLE, Address("tcp", peer)) for _ in range(3)] == [index] * 3


@pytest.mark.parametrize("host", ["10.3.2.1", "192.123.19.1", "::1"])
def test_source_hash_keeps_a_client_at_its_worker_whatever_its_port(host: str) -> None:
    choose = balancer("source_ip_hash")
    more = (0, 0) if ":" in host else ()
    picks = {choose(IDLE, Address("tcp", (host, port, *more))) for port in range(1024, 1124)}
    assert len(picks) == 1


def test_source_hash_spreads_clients() -> None:
    choose = balancer("source_ip_hash")
    picks = {choose(IDLE, Address("tcp", (f"10.0.0.{n}", 80))) for n in range(100)}
    assert picks == {0, 1, 2, 3}


def test_source_hash_is_the_same_for_a_peer_of_ipv4_on_a_dual_stack_socket() -> None:
    choose = balancer("source_ip_hash")
    mapped = Address.from_sockaddr("tcp", ("::ffff:10.3.2.1", 99, 0, 0))
    assert choose(IDLE, mapped) == choose(IDLE, PEER)


@pytest.mark.parametrize("gain_compatible", [False, True])
def test_source_hash_of_unix_peers_goes_to_the_least_busy(gain_compatible: bool) -> None:
    choose = balancer("source_ip_hash", gain_compatible=gain_compatible)
    assert choose([3, 1, 2], Address("unix", ("",))) == 1


def test_a_callable_gets_counts_and_peer() -> None:
    calls: list[Any] = []

    def choose(counts: Sequence[int], remote: Address) -> int:
        calls.append((list(counts), remote))
        return 2

    assert balancer(choose)([4, 5, 6], PEER) == 2
    assert calls == [([4, 5, 6], PEER)]


@pytest.mark.parametrize("index", [4, -1, 2**70])
def test_a_callable_that_returns_no_worker_is_told_which_there_are(index: int) -> None:
    choose = balancer(lambda counts, remote: index)
    with pytest.raises(IndexError, match=f"returned {index}, but the workers are 0 to 3"):
        choose(IDLE, PEER)


@pytest.mark.parametrize("answer", [None, "1", 1.0])
def test_a_callable_that_returns_no_integer_is_refused(answer: object) -> None:
    choose = balancer(lambda counts, remote: answer)
    with pytest.raises(TypeError, match="must return the index of a worker, not"):
        choose(IDLE, PEER)


def test_what_a_callable_raises_comes_out() -> None:
    def choose(counts: Sequence[int], remote: Address) -> int:
        raise TypeError("of the user")

    with pytest.raises(TypeError, match="of the user"):
        balancer(choose)(IDLE, PEER)
