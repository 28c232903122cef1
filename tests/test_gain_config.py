"""The options of a callback server: each is set, each is checked, by name."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pickle
import socket as stdlib_socket
import ssl
import sys
from typing import Any

import pytest
from gain_tools import (
    LOOPBACK,
    Recorder,
    connect,
    echo,
    round_trip,
    run_in_worker,
    server_in_thread,
    socket_option,
)
from marks import needs_ring

from uring_trio import gain
from uring_trio.gain._config import (
    Architecture,
    Config,
    LoadBalancing,
    make_config,
    threads_run_in_parallel,
    usable_cpus,
)
from uring_trio.gain._errors import GainError, InvalidDuration, NotSupported


def balance(counts: Any, remote: Any) -> int:
    return 0


DEFAULTS: dict[str, Any] = {
    "architecture": Architecture.REACTOR,
    "workers": None,
    "async_handler": False,
    "pool": 40,
    "cpu_affinity": False,
    "process_priority": False,
    "cbpf": False,
    "load_balancing": LoadBalancing.ROUND_ROBIN,
    "gain_compatible": False,
    "socket_recv_buffer_size": 0,
    "socket_send_buffer_size": 0,
    "tcp_keep_alive": None,
    "logger_level": None,
    "pretty_logger": False,
    "max_sq_entries": None,
    "max_cq_events": None,
    "tls": None,
    "tls_handshake_timeout": 30.0,
    "max_connections": None,
    "read_buffer_limit": 65536,
    "stuck_input_timeout": 10.0,
    "write_high_water": 65536,
    "write_strict": False,
    "close_timeout": 30.0,
    "reuse_port": False,
    "backlog": None,
    "tick": None,
}

# Every option with something other than its default.
ALLOWED: dict[str, list[Any]] = {
    "architecture": [Architecture.SHARDING, Architecture.REACTOR],
    "workers": [1, 128, None],
    "async_handler": [True],
    "pool": [1, 4096],
    "cpu_affinity": [True],
    "process_priority": [True],
    "load_balancing": [*LoadBalancing, balance],
    "gain_compatible": [True],
    "socket_recv_buffer_size": [2048, 2**31 - 1, 0],
    "socket_send_buffer_size": [2048, 2**31 - 1, 0],
    "tcp_keep_alive": [1, 1.5, 60, 32767, None],
    "logger_level": [0, 10, 35, None],
    "pretty_logger": [True],
    "max_sq_entries": [1, 1024, 32768, None],
    "max_cq_events": [1, 1024, 65536, None],
    "tls": [None],
    "tls_handshake_timeout": [0.001, 10, math.inf],
    "max_connections": [1, 10**6, None],
    "read_buffer_limit": [1, 1 << 20],
    "stuck_input_timeout": [0.001, 60, math.inf, None],
    "write_high_water": [1, 1 << 20],
    "close_timeout": [0.001, 10, math.inf],
    "reuse_port": [True],
    "write_strict": [True],
    "backlog": [1, 128, None],
    "tick": [0.001, 60, None],
}

FLAGS = (
    "async_handler",
    "cpu_affinity",
    "process_priority",
    "cbpf",
    "gain_compatible",
    "pretty_logger",
    "reuse_port",
)
INTEGERS_FROM_1 = (
    "workers",
    "pool",
    "max_sq_entries",
    "max_cq_events",
    "max_connections",
    "read_buffer_limit",
    "write_high_water",
    "backlog",
)
INTEGERS_FROM_0 = ("socket_recv_buffer_size", "socket_send_buffer_size", "logger_level")
SECONDS = (
    "tcp_keep_alive",
    "tls_handshake_timeout",
    "stuck_input_timeout",
    "close_timeout",
    "tick",
)

REFUSED = [
    *((name, value) for name in FLAGS for value in (None, 1, 0, "yes")),
    *((name, value) for name in INTEGERS_FROM_1 for value in (0, -1, 1.0, "1", True, math.nan)),
    *((name, value) for name in INTEGERS_FROM_0 for value in (-1, 1.0, "1", True)),
    *((name, value) for name in SECONDS for value in (0, -1, math.nan, "1", True)),
    ("pool", None),
    ("read_buffer_limit", None),
    ("write_high_water", None),
    ("socket_recv_buffer_size", 2**31),
    ("socket_send_buffer_size", None),
    ("tls_handshake_timeout", None),
    ("close_timeout", None),
    # Gain panics on the first connection.
    ("tcp_keep_alive", 0.999),
    ("tcp_keep_alive", 32768),
    ("tcp_keep_alive", math.inf),
    ("max_sq_entries", 32769),
    ("max_cq_events", 65537),
    ("architecture", "threads"),
    ("architecture", None),
    ("architecture", 0),
    ("load_balancing", "random"),
    ("load_balancing", 10),
    ("load_balancing", None),
    ("tls", "cert.pem"),
    ("tls", True),
]


def test_defaults_are_those_of_the_documentation() -> None:
    config = Config()
    assert {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)} == (
        DEFAULTS
    )
    assert make_config() == config


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ALLOWED.items() for value in values]
)
def test_every_option_sets_its_field_and_no_other(name: str, value: Any) -> None:
    config = make_config(**{name: value})
    assert getattr(config, name) == value
    assert dataclasses.replace(config, **{name: DEFAULTS[name]}) == Config()


def test_cbpf_goes_with_sharding_only() -> None:
    assert make_config(cbpf=True, architecture="sharding").cbpf is True
    with pytest.raises(ValueError, match=r"cbpf.*allowed with architecture='sharding' only"):
        make_config(cbpf=True)
    with pytest.raises(ValueError, match="cbpf"):
        make_config(cbpf=True, architecture=Architecture.REACTOR)


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_allowed_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*, not ") as caught:
        make_config(**{name: value})
    assert repr(value) in str(caught.value)


def test_choices_may_be_given_by_value() -> None:
    config = make_config(architecture="sharding", load_balancing="source_ip_hash")
    assert config.architecture is Architecture.SHARDING
    assert config.load_balancing is LoadBalancing.SOURCE_IP_HASH
    assert config == Config(
        architecture=Architecture.SHARDING, load_balancing=LoadBalancing.SOURCE_IP_HASH
    )


def test_unknown_load_balancing_is_not_supported() -> None:
    # Gain's createLoadBalancer(10).
    with pytest.raises(NotSupported, match=r"'round_robin'.*or a callable, not 10"):
        make_config(load_balancing=10)


@pytest.mark.parametrize("name", SECONDS)
def test_bad_durations_have_a_class_of_their_own(name: str) -> None:
    with pytest.raises(InvalidDuration, match="seconds") as caught:
        make_config(**{name: -0.5})
    assert isinstance(caught.value, GainError)


def test_tls_context_must_be_for_servers() -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert make_config(tls=server).tls is server
    with pytest.raises(ValueError, match=r"tls must be an .* for servers"):
        make_config(tls=ssl.create_default_context())


def test_unknown_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"no option 'worker'; did you mean 'workers'"):
        make_config(worker=2)
    with pytest.raises(TypeError, match=r"no option 'xyzzy'$"):
        make_config(xyzzy=2)


def test_config_cannot_be_changed() -> None:
    config: Any = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.workers = 2


def test_config_survives_pickling() -> None:
    config = make_config(workers=3, architecture="sharding", load_balancing=balance)
    assert pickle.loads(pickle.dumps(config)) == config


def test_worker_count_is_what_was_asked_for() -> None:
    assert make_config(workers=7).worker_count == 7


def cpu_count() -> int | None:
    """With -X cpu_count, too, from 3.13 on."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count()
    return len(usable_cpus())


def test_worker_count_follows_the_build() -> None:
    expected = cpu_count() if threads_run_in_parallel() else 1
    assert Config().worker_count == expected
    assert dataclasses.replace(make_config(workers=7), workers=None).worker_count == expected


def test_worker_count_without_gil_is_one_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert Config().worker_count == cpu_count()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    assert Config().worker_count == 1


def test_usable_cpus_are_those_of_the_affinity() -> None:
    assert usable_cpus() == sorted(os.sched_getaffinity(0))


# Given to a server


@needs_ring
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("tcp_keep_alive", 0.5),
        ("tcp_keep_alive", 0),
        ("max_sq_entries", 0),
        ("max_sq_entries", 32769),
        ("max_cq_events", 0),
        ("load_balancing", 10),
        ("architecture", "neither"),
        ("cbpf", True),  # without sharding
    ],
)
def test_option_that_cannot_work_is_refused_when_it_is_given(option: str, value: Any) -> None:
    """B18: with some of them Gain panics at the first connection, with others it is deaf."""
    with pytest.raises(ValueError, match=option):
        gain.Config(**{option: value})
    with pytest.raises(ValueError, match=option):
        gain.listen_and_serve(LOOPBACK, Recorder(), **{option: value})


@needs_ring
def test_keep_alive_of_a_second_is_set() -> None:
    """B18: below it Gain's acceptor dies; here one that is too short changes nothing."""
    handler = Recorder(on_read=echo)
    refusals = []

    def try_options(conn: gain.Conn) -> None:
        with pytest.raises(gain.InvalidDuration) as caught:
            conn.set_keep_alive_period(0.5)
        refusals.append(caught.value)

    handler.actions["on_accept"] = try_options
    with (
        server_in_thread(handler, workers=1, tcp_keep_alive=1) as server,
        connect(server) as client,
    ):
        round_trip(client, b"hello")
        conn = handler.conn
        for level, option in (
            (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE),
            (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE),
            (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPINTVL),
        ):
            ask = functools.partial(socket_option, conn, level, option)
            assert run_in_worker(conn, ask) == 1
    assert len(refusals) == 1
