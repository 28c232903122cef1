"""Every async test runs on stock trio and on the ring, and ends with its books balanced.

An async test without a marker of pytest-trio or anyio is run by this file, with
``harness.run``, once for each backend. ``@pytest.mark.ring_only`` and
``@pytest.mark.stock_only`` leave one of them out. A sync test that wants the same
takes ``backend`` as an argument.

Where io_uring is denied, the tests on the ring are skipped and say why; with
``URING_TRIO_REQUIRE=1`` in the environment they fail instead.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any

import harness
import pytest

TEST_TIMEOUT_S = 30  # the slowest takes 5 s on two busy cores
FOREIGN_MARKERS = ("trio", "anyio", "asyncio")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ring_only: promised by the ring alone, so not run on epoll")
    config.addinivalue_line("markers", "stock_only: about the reference alone, so not run on the ring")


def is_ours(function: Any, markers: list[pytest.Mark]) -> bool:
    foreign = any(mark.name in FOREIGN_MARKERS for mark in markers)
    return inspect.iscoroutinefunction(inspect.unwrap(function)) and not foreign


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    # An async test need not name `backend` to be run on both.
    if collector.funcnamefilter(name) and inspect.iscoroutinefunction(obj):
        markers = [*collector.iter_markers(), *getattr(obj, "pytestmark", [])]
        if is_ours(obj, markers):
            pytest.mark.usefixtures("backend")(obj)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    backends = [harness.EPOLL, harness.RING]
    if metafunc.definition.get_closest_marker("ring_only"):
        backends.remove(harness.EPOLL)
    if metafunc.definition.get_closest_marker("stock_only"):
        backends.remove(harness.RING)
    metafunc.parametrize("backend", backends)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


def pytest_runtest_setup(item: pytest.Item) -> None:
    callspec = getattr(item, "callspec", None)
    if callspec is None or callspec.params.get("backend") != harness.RING:
        return
    reason = harness.ring_denied()
    if reason is None:
        return
    if os.environ.get("URING_TRIO_REQUIRE") == "1":
        pytest.fail(f"URING_TRIO_REQUIRE is 1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not is_ours(pyfuncitem.obj, list(pyfuncitem.iter_markers())):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    backend = pyfuncitem.funcargs["backend"]
    harness.run(backend, functools.partial(pyfuncitem.obj, **arguments))
    return True


@pytest.fixture(autouse=True)
def fds_balance() -> Iterator[None]:
    """No test leaves a file descriptor behind."""
    with harness.no_new_fds():
        yield
