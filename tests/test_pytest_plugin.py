"""``-p uring_trio.pytest_plugin``: whole sessions on the ring, and sessions that only say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sandbox
import trio
from marks import needs_ring

if TYPE_CHECKING:
    from pathlib import Path

PLAIN_RUN = """
import trio
def test_plain_run():
    async def main():
        a, b = trio.socket.socketpair()
        with a, b:
            await a.send(b"x")
            assert await b.recv(1) == b"x"
        return trio.lowlevel.current_statistics().io_statistics.backend
    assert trio.run(main) == "io_uring"
"""

PYTEST_TRIO = """
import pytest, trio, uring_trio
def backend():
    return trio.lowlevel.current_statistics().io_statistics.backend
@pytest.mark.trio
async def test_default():
    assert backend() == BACKEND
@pytest.mark.trio(run=uring_trio.run)
async def test_ours():
    await trio.sleep(0)
    assert backend() == OURS
"""

ANYIO = """
import pytest, trio
@pytest.fixture(params=["trio"])
def anyio_backend(request):
    return request.param
@pytest.fixture
async def fixture(anyio_backend):
    yield trio.lowlevel.current_statistics().io_statistics.backend
@pytest.mark.anyio
async def test_anyio(fixture):
    assert fixture == "io_uring"
"""

NO_RUN = "def test_nothing(): pass\n"

ASKS_FOR_EPOLL = """
import trio, uring_trio
def test_both():
    uring_trio.run(trio.sleep, 0, backend="epoll")
    trio.run(trio.sleep, 0)
"""

UNINSTALLS = """
import trio, uring_trio
def test_uninstalls():
    trio.run(trio.sleep, 0)
    uring_trio.uninstall()
    trio.run(trio.sleep, 0)
"""

CHANGES_THE_ENVIRONMENT = """
import os, trio
def test_changes():
    trio.run(trio.sleep, 0)
    os.environ["URING_TRIO_BACKEND"] = "epoll"
    trio.run(trio.sleep, 0)
"""


def run_pytest(
    directory: Path, content: str, *arguments: str, how: str = "NONE", **environment: str
) -> Any:
    """A session of its own; returns the finished process with the report as ``.report``."""
    (directory / "test_it.py").write_text(content)
    (directory / "pytest.ini").write_text("[pytest]\n")
    report = directory / "report.json"
    command = [sys.executable, "-m", "pytest", "-p", "uring_trio.pytest_plugin"]
    command += ["-p", "no:cacheprovider", f"--uring-report={report}", *arguments]
    command += [f"--rootdir={directory}", str(directory)]
    done: Any = sandbox.run(how, *command, **environment)
    done.report = json.loads(report.read_text()) if report.exists() else None
    return done


@needs_ring
def test_session_is_on_the_ring_and_its_operations_are_summed(tmp_path: Path) -> None:
    twice = PLAIN_RUN + PLAIN_RUN.replace("test_plain_run", "test_again")
    done = run_pytest(tmp_path, twice)
    assert done.returncode == 0, done.stdout
    assert "uring_trio: io_uring (--uring-backend=io_uring)" in done.stdout
    assert "runs: io_uring 2" in done.stdout
    assert done.report["runs"] == {"io_uring": 2}
    assert done.report["operations"]["recv"] == 2
    assert done.report["operations"]["send"] == 2
    assert done.report["ring"]["stale_cqes"] == 0
    assert done.report["failures"] == []
    assert "recv 2" in done.stdout


@needs_ring
def test_pytest_trio_and_its_run_mark(tmp_path: Path) -> None:
    names = 'BACKEND = OURS = "io_uring"\n'
    done = run_pytest(tmp_path, names + PYTEST_TRIO)
    assert done.returncode == 0, done.stdout
    assert done.report["runs"] == {"io_uring": 2}


@needs_ring
def test_run_mark_puts_one_test_on_the_ring_without_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text('BACKEND, OURS = "epoll", "io_uring"\n' + PYTEST_TRIO)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"--rootdir={tmp_path}", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "URING_TRIO_BACKEND"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "uring_trio:" not in done.stdout  # never loaded by itself


@needs_ring
def test_anyio_plugin(tmp_path: Path) -> None:
    pytest.importorskip("anyio")
    if not hasattr(trio.lowlevel, "in_trio_task"):
        pytest.skip(f"anyio's plugin needs a newer trio than {trio.__version__}")
    done = run_pytest(tmp_path, ANYIO)
    assert done.returncode == 0, done.stdout
    assert done.report["runs"] == {"io_uring": 1}


@needs_ring
def test_trios_own_plugin(tmp_path: Path) -> None:
    content = """
import trio
async def test_async():
    assert trio.lowlevel.current_statistics().io_statistics.backend == "io_uring"
async def test_clock(autojump_clock):
    await trio.sleep(1000)
"""
    done = run_pytest(
        tmp_path, content, "-p", "trio._tests.pytest_plugin", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert done.returncode == 0, done.stdout
    assert done.report["runs"] == {"io_uring": 2}


@needs_ring
def test_session_without_a_run_fails(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, NO_RUN)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in done.stdout
    assert "FAILED uring_trio: no run was on io_uring" in done.stdout
    assert run_pytest(tmp_path, NO_RUN, "--collect-only").returncode == 0


@needs_ring
def test_run_that_is_elsewhere_fails_the_session(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CHANGES_THE_ENVIRONMENT)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in done.stdout
    assert "FAILED uring_trio: 1 runs were elsewhere" in done.stdout
    assert done.report["runs"] == {"io_uring": 1, "epoll": 1}


@needs_ring
def test_test_that_uninstalls_fails_the_session(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, UNINSTALLS)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_it.py::test_uninstalls left uring_trio uninstalled" in done.stdout


@needs_ring
def test_run_that_asks_for_epoll_is_counted_and_no_failure(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, ASKS_FOR_EPOLL)
    assert done.returncode == 0, done.stdout
    assert done.report["runs"] == {"epoll": 1, "io_uring": 1}
    assert done.report["asked_elsewhere"] == {"epoll": 1}


@needs_ring
def test_other_backends(tmp_path: Path) -> None:
    names = 'BACKEND = OURS = "epoll"\n'
    done = run_pytest(tmp_path, names + PYTEST_TRIO, "--uring-backend=epoll")
    assert done.returncode == 0, done.stdout
    assert done.report["runs"] == {"epoll": 2}
    assert run_pytest(tmp_path, NO_RUN, "--uring-backend=epoll").returncode == 1
    done = run_pytest(tmp_path, PLAIN_RUN, "--uring-backend=auto")
    assert done.returncode == 0, done.stdout


def test_session_that_demands_the_ring_does_not_start_where_it_is_denied(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, PLAIN_RUN, how="EPERM")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "seccomp" in done.stderr
    assert "passed" not in done.stdout


def test_session_with_auto_runs_where_the_ring_is_denied(tmp_path: Path) -> None:
    on_epoll = PLAIN_RUN.replace('"io_uring"', '"epoll"')
    done = run_pytest(tmp_path, on_epoll, "--uring-backend=auto", how="EPERM")
    assert done.returncode == 0, done.stdout
    assert done.report["runs"] == {"epoll": 1}


@needs_ring
def test_failing_test_fails_as_always(tmp_path: Path) -> None:
    failing = PLAIN_RUN.replace('"io_uring"', '"nothing"')
    done = run_pytest(tmp_path, failing)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert done.report["failures"] == []
