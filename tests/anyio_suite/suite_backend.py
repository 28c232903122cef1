"""A pytest plugin for anyio's own suite: one backend in place of all, and what its runs were on.

The environment variable ``ANYIO_SUITE_ROUTE`` says by which way anyio is brought to the ring:

* ``stock``: not at all, backend ``"trio"``;
* ``options``: backend ``"trio"`` with ``anyio_options()``, as the parameter ``trio+uring``;
* ``name``: backend ``"uring_trio"``;
* ``install``: backend ``"trio"`` after ``install()``.

The suite's conftest is a copy that takes its parameters from `backend_params`. Each run of
this process is counted with its backend and the test that started it. Where nothing is
installed, a run that neither the options nor the name has reached is on epoll, and seen.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import uring_trio
from uring_trio import _hooks

if TYPE_CHECKING:
    from collections.abc import Iterator

PARAMETERS = {"stock": "trio", "options": "trio+uring", "name": "uring_trio", "install": "trio"}
PLUGIN_NAME = "suite_runs"

# From the environment: the suite's conftest asks before pytest has read its options.
ROUTE = os.environ["ANYIO_SUITE_ROUTE"]
RECORD = Path(os.environ["ANYIO_SUITE_RECORD"])


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(), PLUGIN_NAME)


def backend_params() -> list[Any]:
    """What the fixture ``anyio_backend`` is parametrized with."""
    if ROUTE == "options":
        options = uring_trio.anyio_options(backend="io_uring")
        return [pytest.param(("trio", options), id=PARAMETERS[ROUTE])]
    return [pytest.param(PARAMETERS[ROUTE], id=PARAMETERS[ROUTE])]


class StartOfRun(trio.abc.Instrument):
    """Tells of every run, whoever starts it: ``before_run`` comes after those that swap."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def before_run(self) -> None:
        self.recorder.note_run(trio.lowlevel.current_statistics().io_statistics.backend)


class Recorder:
    """Each test's outcome, each run's backend, and what the rings did."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.runs: Counter[str] = Counter()  # by backend
        self.elsewhere: Counter[str] = Counter()  # runs on epoll, by test
        self.rings: list[_hooks.Run] = []
        self.test = "no test"

    def note_run(self, backend: str) -> None:
        self.runs[backend] += 1
        if backend != "io_uring":
            self.elsewhere[self.test] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.test = item.nodeid
        try:
            return (yield)
        finally:
            self.test = "no test"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Set-up and tear-down tell only of what went wrong in them, or of a skip.
        tells = report.when == "call" or not report.passed
        if tells and self.outcomes.get(report.nodeid) in (None, "passed"):
            self.outcomes[report.nodeid] = outcome_of(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.outcomes[f"{report.nodeid} (collecting)"] = report.outcome

    def pytest_sessionstart(self) -> None:
        _hooks.observers.append(self.rings.append)
        watch_every_run(StartOfRun(self))
        if ROUTE == "install":
            uring_trio.install(backend="io_uring")

    def pytest_sessionfinish(self) -> None:
        totals: dict[str, Counter[str]] = {
            name: Counter() for name in ("operations", "plain_calls", "stock_calls")
        }
        for run in self.rings:
            if run.statistics is not None:
                for name, counts in totals.items():
                    counts.update(getattr(run.statistics, name))
        content = {
            "outcomes": self.outcomes,
            "runs": self.runs,
            "elsewhere": self.elsewhere,
            **totals,
        }
        RECORD.write_text(json.dumps(content))


def watch_every_run(watcher: trio.abc.Instrument) -> None:
    """Give *watcher* to each run, after its own instruments, so that it sees what they made."""
    instruments_class: Any = trio._core._run.Instruments  # type: ignore[attr-defined]
    original = instruments_class.__init__

    def watched(self: Any, incoming: Any) -> None:
        original(self, [*incoming, watcher])

    instruments_class.__init__ = watched


def outcome_of(report: pytest.TestReport) -> str:
    if report.when != "call" and report.failed:
        return "error"
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return str(report.outcome)
