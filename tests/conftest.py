"""Differential tests, and the books that every test must balance.

A module with ``pytestmark = pytest.mark.differential`` has each of its async tests run
by pytest-trio once on stock trio, the reference, and once on the ring, through
``harness.run``. A sync test gets the same by taking ``backend`` as an argument.
``@pytest.mark.ring_only`` and ``@pytest.mark.stock_only`` leave one of the two out.

Where io_uring is denied, the tests on the ring are skipped and say why; with
``URING_TRIO_REQUIRE=1`` in the environment they fail instead.
"""

from __future__ import annotations

import functools
import inspect
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import builds
import harness
import kernel_workers
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

BOOK = pytest.StashKey[kernel_workers.Book]()
REPORTS = pytest.StashKey["builds.Reports | None"]()


# Descriptors; more than the longest batch of any test.
OPEN_FILES = 8192


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOOK] = kernel_workers.Book()
    config.stash[REPORTS] = builds.inherited_reports()
    if harness.IMPORT_ERROR is None:
        from uring_trio._io_manager import UringIOManager

        kernel_workers.watch_runs(UringIOManager)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell starts a background job; tests of KeyboardInterrupt would wait for ever.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # As servers do: 1,024, a usual soft limit, are too few for some tests.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        limit = OPEN_FILES if hard < 0 else min(hard, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    for line in (
        "long: too long for `make test`; a part of `make test-all`",
        "differential: its async tests run on stock trio and on the ring",
        "ring_only: promised by the ring alone, so not run on epoll",
        "stock_only: about the reference alone, so not run on the ring",
        "fast_ways: about what a fast way costs or leaves out, so not run with all of them off",
        "collects: leaves cycles that hold descriptors, for the reason that is given",
        "ecosystem: other programs on the ring; what they need is in the extra `ecosystem`",
    ):
        config.addinivalue_line("markers", line)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[BOOK].close()


def is_differential(collector: Any, function: Any) -> bool:
    markers = [*collector.iter_markers(), *getattr(function, "pytestmark", [])]
    wanted = any(mark.name == "differential" for mark in markers)
    return wanted and inspect.iscoroutinefunction(function)


def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    # So that a differential test need not name `backend` to be run on both.
    if collector.funcnamefilter(name) and is_differential(collector, obj):
        pytest.mark.usefixtures("backend")(obj)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    backends = [harness.EPOLL, harness.RING]
    # What a variant is to show is of our C, which stock trio has none of.
    if metafunc.definition.get_closest_marker("ring_only") or builds.inherited():
        backends.remove(harness.EPOLL)
    if metafunc.definition.get_closest_marker("stock_only"):
        backends.remove(harness.RING)
    metafunc.parametrize("backend", backends)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("differential") is None or not isinstance(item, pytest.Function):
            continue
        if inspect.iscoroutinefunction(item.obj):
            backend = str(item.callspec.params["backend"])
            run = functools.partial(harness.run, backend)
            # First, because pytest-trio takes the first marker that names a run.
            item.add_marker(pytest.mark.trio(run=run), append=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("fast_ways") is not None and not harness.FAST_WAYS:
        pytest.skip("the fast ways are off")
    callspec = getattr(item, "callspec", None)
    if callspec is None or callspec.params.get("backend") != harness.RING:
        return
    reason = harness.ring_denied()
    if reason is None:
        return
    if os.environ.get("URING_TRIO_REQUIRE") == "1":
        pytest.fail(f"URING_TRIO_REQUIRE is 1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No run of a test, in whatever thread or process, has its work done by the kernel's threads.

    And a guard or a sanitizer, if these tests run on one (`builds`), has nothing to report.
    Looked at when all fixtures are down. A hook, and no fixture, since an expected failure would
    hide what a fixture finds.
    """
    report = yield
    if call.when != "teardown":
        return report
    found = item.config.stash[BOOK].news()
    if (reports := item.config.stash[REPORTS]) is not None:
        found += reports.news()
    if found:
        report.outcome = "failed"
        report.__dict__.pop("wasxfail", None)
        report.longrepr = "\n".join([*found, *([report.longreprtext] if report.longrepr else [])])
    return report


@pytest.fixture(autouse=True)
def fds_balance(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a file descriptor behind, or one that only a collection closes."""
    with harness.no_new_fds(collecting="collects" in request.keywords):
        yield
