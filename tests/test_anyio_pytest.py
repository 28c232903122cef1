"""anyio's pytest plugin on the ring: by name with nothing imported, and by options.

What pytest loads by itself is only the name: no hook, no trio, no anyio.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from marks import needs_ring

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("anyio")

BY_NAME = """
import pytest
pytestmark = pytest.mark.anyio
@pytest.fixture(scope="module")
def anyio_backend():
    return "uring_trio"
@pytest.fixture(scope="module")
async def manager(anyio_backend):
    import trio
    yield trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
async def test_backend(manager):
    import sniffio, trio
    assert trio.lowlevel.current_statistics().io_statistics.backend == "io_uring"
    assert sniffio.current_async_library() == "trio"
    a, b = trio.socket.socketpair()
    with a, b:
        await a.send(b"x")
        assert await b.recv(1) == b"x"
async def test_fixture_and_test_share_the_run(manager):
    import trio
    assert manager is trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
def test_name_outside_of_the_run(manager):
    import sniffio
    assert sniffio.current_async_library_cvar.get() == "trio"
"""

BY_OPTIONS = """
import pytest, trio, uring_trio
@pytest.fixture(params=[
    pytest.param(("trio", {}), id="trio"),
    pytest.param(("trio", uring_trio.anyio_options()), id="trio+uring"),
])
def anyio_backend(request):
    return request.param
@pytest.mark.anyio
@pytest.mark.parametrize("n", [1, 2, 3])
async def test_backend(anyio_backend, n):
    wanted = "io_uring" if anyio_backend[1] else "epoll"
    assert trio.lowlevel.current_statistics().io_statistics.backend == wanted
"""

NOTHING_LOADED = """
import sys
def test_nothing_is_loaded():
    assert "uring_trio._pytest_entry" in sys.modules
    assert not {"trio", "anyio", "sniffio", "uring_trio._run"} & set(sys.modules)
"""

NO_RING = """
import pytest, uring_trio
from uring_trio import _hooks
def refuse(manager, ring):
    raise OSError(1, "io_uring_setup: Operation not permitted")
options = uring_trio.anyio_options(backend="io_uring")
_hooks._make_ring = refuse
@pytest.fixture(params=[("trio", options), ("uring_trio", {"backend": "io_uring"})])
def anyio_backend(request):
    return request.param
@pytest.mark.anyio
async def test_never(anyio_backend):
    raise AssertionError("ran")
"""


def run_pytest(
    directory: Path, content: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(content)
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        [*command, f"--rootdir={directory}", str(directory)],
        cwd=directory,
        env={k: v for k, v in os.environ.items() if k != "URING_TRIO_BACKEND"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def assert_passed(done: subprocess.CompletedProcess[str], n: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{n} passed" in done.stdout


def test_entry_point_is_declared_and_is_not_the_plugin_for_sessions() -> None:
    (entry,) = (
        entry
        for entry in importlib.metadata.entry_points(group="pytest11")
        if entry.name == "uring_trio"
    )
    assert entry.value == "uring_trio._pytest_entry"


@needs_ring
def test_backend_by_name_with_nothing_imported(tmp_path: Path) -> None:
    assert_passed(run_pytest(tmp_path, BY_NAME), 3)


@needs_ring
def test_entry_point_alone_without_the_other_plugins(tmp_path: Path) -> None:
    # pytest-trio, which is in this environment, would import trio.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = run_pytest(tmp_path, NOTHING_LOADED, "-p", "uring_trio", **alone)
    assert_passed(done, 1)
    done = run_pytest(tmp_path, BY_NAME, "-p", "anyio", "-p", "uring_trio", **alone)
    assert_passed(done, 3)


@needs_ring
def test_options_beside_stock_trio(tmp_path: Path) -> None:
    assert_passed(run_pytest(tmp_path, BY_OPTIONS), 6)


@needs_ring
def test_with_the_plugin_for_whole_sessions(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, BY_NAME, "-p", "uring_trio.pytest_plugin")
    assert_passed(done, 3)
    assert "runs: io_uring 1\n" in done.stdout


@needs_ring
def test_ring_that_cannot_be_made_is_an_error_of_the_test_and_no_hang(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, NO_RING)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "2 failed" in done.stdout
    assert "UringUnavailable: io_uring is not available: io_uring_setup" in done.stdout
    assert "AssertionError" not in done.stdout


@needs_ring
def test_program_that_imports_us_and_then_calls_pytest_gets_no_warning(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(BY_NAME)
    program = "import sys, uring_trio, pytest; sys.exit(pytest.main(['-p', 'no:cacheprovider']))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert_passed(done, 3)
