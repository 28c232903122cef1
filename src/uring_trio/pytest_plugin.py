"""Runs a whole pytest session on the ring: ``pytest -p uring_trio.pytest_plugin``.

It is never loaded by itself. It calls ``install()`` before the first test, so each
``trio.run`` of this process is on the ring, whoever calls it: pytest-trio, anyio's
plugin, trio's own, or a test. It counts the runs by backend, and fails a session in which
one ran elsewhere, or none ran at all: a green session that was on epoll proves nothing.
A run that asks for epoll itself, by ``uring_trio.run(..., backend="epoll")``, is counted
and is no failure. Processes that a test starts are not seen.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from uring_trio import _probe
from uring_trio._errors import UringUnavailable
from uring_trio._run import install, uninstall

if TYPE_CHECKING:
    from uring_trio._hooks import Run

PLUGIN_NAME = "uring_trio_runs"
WORKER_KEY = "uring_trio"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("uring_trio", "trio on io_uring")
    group.addoption(
        "--uring-backend",
        choices=_probe.BACKENDS,
        default="io_uring",
        help="where the runs of this session must be (default: io_uring)",
    )
    group.addoption(
        "--uring-report",
        type=Path,
        metavar="FILE",
        help="write the runs by backend and the operations by opcode to FILE, as JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("--uring-backend")
    outermost = _probe.installed_demand() is None
    try:
        install(backend=backend)
    except (UringUnavailable, ValueError, RuntimeError) as exc:
        raise pytest.UsageError(f"--uring-backend={backend}: {exc}") from exc
    config.pluginmanager.register(RunCounter(config, backend, outermost=outermost), PLUGIN_NAME)


def pytest_unconfigure(config: pytest.Config) -> None:
    counter = config.pluginmanager.get_plugin(PLUGIN_NAME)
    if counter is not None:
        counter.stop()


@dataclass
class Tally:
    """What a session did; sums of plain numbers, so that workers can send it."""

    runs: Counter[str] = field(default_factory=Counter)  # by backend
    asked_elsewhere: Counter[str] = field(default_factory=Counter)  # by backend
    elsewhere: Counter[str] = field(default_factory=Counter)  # by reason
    operations: Counter[str] = field(default_factory=Counter)  # by opcode
    plain_calls: Counter[str] = field(default_factory=Counter)  # by opcode
    stock_calls: Counter[str] = field(default_factory=Counter)  # by reason
    ring: Counter[str] = field(default_factory=Counter)  # enters, stale_cqes

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {name: dict(counts) for name, counts in vars(self).items()}

    def add(self, other: dict[str, dict[str, int]]) -> None:
        for name, counts in other.items():
            getattr(self, name).update(counts)

    def count(self, run: Run, demand: str) -> None:
        self.runs[run.backend] += 1
        if run.failure is not None and run.failure.cause == "asked for":
            if demand != "epoll":
                self.asked_elsewhere[run.backend] += 1
        elif demand == "io_uring" and run.failure is not None:
            self.elsewhere[run.failure.reason] += 1
        elif demand == "epoll" and run.backend == "io_uring":
            self.asked_elsewhere[run.backend] += 1
        if run.statistics is not None:
            self.operations.update(run.statistics.operations)
            self.plain_calls.update(run.statistics.plain_calls)
            self.stock_calls.update(run.statistics.stock_calls)
            self.ring["enters"] += run.statistics.enters
            self.ring["stale_cqes"] += run.statistics.stale_cqes


class RunCounter:
    """The session's runs, and the verdict on them."""

    def __init__(self, config: pytest.Config, demand: str, *, outermost: bool) -> None:
        self.config = config
        self.demand = demand
        self.outermost = outermost
        self.runs: list[Run] = []
        self.from_workers = Tally()
        self.uninstalled_by: list[str] = []
        # Where trio cannot be hooked, runs cannot be counted either.
        self.hooks: Any = None
        if _probe.trio_failure() is None:
            from uring_trio import _hooks

            self.hooks = _hooks
            _hooks.observers.append(self.runs.append)

    def stop(self) -> None:
        if self.hooks is not None:
            self.hooks.observers.remove(self.runs.append)
        if self.outermost:
            uninstall()

    def tally(self) -> Tally:
        total = Tally()
        total.add(self.from_workers.as_dict())
        for run in self.runs:
            total.count(run, self.demand)
        return total

    def failures(self) -> list[str]:
        """Why this session proves nothing about the backend that was demanded."""
        if self.hooks is None or self.config.option.collectonly:
            return []
        total = self.tally()
        found = [f"{n} runs were elsewhere: {reason}" for reason, n in total.elsewhere.items()]
        found += [f"{test} left uring_trio uninstalled" for test in self.uninstalled_by]
        wanted = total.runs["io_uring"] if self.demand == "io_uring" else total.runs.total()
        if not wanted:
            found.append(f"no run was on {self.demand}")
        return found

    def pytest_report_header(self) -> str:
        report = _probe.probe()
        reason = f", {report.reason}" if report.reason else ""
        return f"uring_trio: {report.backend} (--uring-backend={self.demand}{reason})"

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if self.hooks is not None and not self.hooks.is_installed():
            self.uninstalled_by.append(item.nodeid)
            uninstall()
            install(backend=self.config.getoption("--uring-backend"))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist has ended; the runs are in the workers."""
        sent = getattr(node, "workeroutput", {}).get(WORKER_KEY)
        if sent is not None:
            self.from_workers.add(sent["tally"])
            self.uninstalled_by += sent["uninstalled_by"]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        worker_output = getattr(self.config, "workeroutput", None)
        if worker_output is not None:
            worker_output[WORKER_KEY] = {
                "tally": self.tally().as_dict(),
                "uninstalled_by": self.uninstalled_by,
            }
            return
        if self.failures() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        path = self.config.getoption("--uring-report")
        if path is not None:
            content = {"demand": self.demand, **self.tally().as_dict(), "failures": self.failures()}
            path.write_text(json.dumps(content, indent=2) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        total = self.tally()
        terminalreporter.section("uring_trio")
        terminalreporter.line(f"runs: {listed(total.runs)}")
        if total.asked_elsewhere:
            terminalreporter.line(f"of these, as they asked: {listed(total.asked_elsewhere)}")
        if total.runs["io_uring"]:
            terminalreporter.line(f"operations: {listed(total.operations)}")
            terminalreporter.line(f"plain calls: {listed(total.plain_calls)}")
            terminalreporter.line(f"stock calls: {listed(total.stock_calls)}")
            terminalreporter.line(f"ring: {listed(total.ring)}")
        for failure in self.failures():
            terminalreporter.line(f"FAILED uring_trio: {failure}", red=True)


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "none"
