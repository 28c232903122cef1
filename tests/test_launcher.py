"""``python -m uring_trio run``: a program sees what it would see under plain python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipapp
from typing import TYPE_CHECKING, Any

import pytest
from marks import needs_ring

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 50

# Everything that a program can see of how it was started.
SHOW = """
import json, sys, trio
async def main():
    await trio.sleep(0)
    return trio.lowlevel.current_statistics().io_statistics.backend
if __name__ == "__main__":
    spec = globals().get("__spec__")
    print(json.dumps({
        "argv": sys.argv, "path": sys.path, "file": __file__, "package": __package__,
        "spec": spec and spec.name, "main": sys.modules["__main__"].__dict__ is globals(),
        "backend": trio.run(main),
    }))
"""


def python(
    directory: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k != "URING_TRIO_BACKEND"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def launch(directory: Path, *arguments: str, **environment: str) -> Any:
    return python(directory, "-m", "uring_trio", "run", *arguments, **environment)


def make_programs(directory: Path) -> None:
    """A script, a package with a module in it, and a directory that is a program."""
    package = directory / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    scripts = directory / "scripts"
    scripts.mkdir()
    app = directory / "app"
    app.mkdir()
    for path in (
        scripts / "show.py",
        package / "module.py",
        package / "__main__.py",
        app / "__main__.py",
    ):
        path.write_text(SHOW)
    zipapp.create_archive(app, directory / "app.zip")


@needs_ring
@pytest.mark.parametrize(
    "program",
    [
        ["scripts/show.py", "a", "-b", "--backend", "epoll"],
        ["-m", "package.module", "-m", "x"],
        ["-m", "package", "--help"],
        ["app", "x"],
        ["app.zip", "x"],
    ],
    ids=lambda program: " ".join(program[:2]),
)
def test_program_sees_what_it_sees_under_plain_python_but_the_ring(
    tmp_path: Path, program: list[str]
) -> None:
    make_programs(tmp_path)
    plain = python(tmp_path, *program)
    ours = launch(tmp_path, *program)
    assert ours.returncode == plain.returncode == 0, ours.stderr
    expected, found = json.loads(plain.stdout), json.loads(ours.stdout)
    assert expected.pop("backend") == "epoll"
    assert found.pop("backend") == "io_uring"
    assert found == expected
    assert ours.stderr == plain.stderr == ""


@needs_ring
def test_program_run_through_a_symbolic_link_imports_from_beside_its_file(tmp_path: Path) -> None:
    make_programs(tmp_path)
    (tmp_path / "link.py").symlink_to(tmp_path / "scripts" / "show.py")
    plain, ours = python(tmp_path, "link.py"), launch(tmp_path, "link.py")
    assert json.loads(ours.stdout)["path"] == json.loads(plain.stdout)["path"]


@needs_ring
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("raise LookupError('mine')", 1),
        ("import sys; sys.exit('a message')", 1),
        ("pass", 0),
    ],
)
def test_exit_status_is_the_programs(tmp_path: Path, body: str, status: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(body)
    assert launch(tmp_path, "script.py").returncode == status
    assert python(tmp_path, "script.py").returncode == status


@needs_ring
def test_backend_option_and_environment_choose(tmp_path: Path) -> None:
    make_programs(tmp_path)

    def backend(*options: str, **environment: str) -> str:
        done = launch(tmp_path, *options, "scripts/show.py", **environment)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["backend"])

    assert backend("--backend", "io_uring") == "io_uring"
    assert backend("--backend=epoll") == "epoll"
    assert backend(URING_TRIO_BACKEND="epoll") == "epoll"
    refused = launch(tmp_path, "--backend=io_uring", "scripts/show.py", URING_TRIO_BACKEND="epoll")
    assert refused.returncode == 1
    assert "URING_TRIO_BACKEND" in refused.stderr
    assert refused.stdout == ""


@needs_ring
def test_missing_program_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = launch(tmp_path, "nowhere.py")
    assert done.returncode == 2
    assert "can't open file 'nowhere.py'" in done.stderr


CHILDREN = """
import multiprocessing, subprocess, sys, trio
from concurrent.futures import ProcessPoolExecutor

async def main():
    return trio.lowlevel.current_statistics().io_statistics.backend

def child(queue):
    queue.put(trio.run(main))

def parent(queue):
    inner = multiprocessing.get_context(sys.argv[1])
    process = inner.Process(target=child, args=(queue,))
    process.start()
    process.join()

def pooled(_):
    return trio.run(main)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    for target in (child, parent):
        process = context.Process(target=target, args=(queue,))
        process.start()
        print(queue.get(), flush=True)
        process.join()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(*pool.map(pooled, [0]), flush=True)
    code = ("import trio\\nasync def main(): "
            "print(trio.lowlevel.current_statistics().io_statistics.backend)\\ntrio.run(main)")
    subprocess.run([sys.executable, "-c", code], check=True)
"""


@needs_ring
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_multiprocessing_are_on_the_ring_and_other_processes_are_not(
    tmp_path: Path, method: str
) -> None:
    (tmp_path / "children.py").write_text(CHILDREN)
    done = launch(tmp_path, "children.py", method)
    assert done.returncode == 0, done.stderr
    # A child, its own child, a worker of a pool; and an ordinary subprocess.
    assert done.stdout.split() == ["io_uring", "io_uring", "io_uring", "epoll"]


@needs_ring
def test_main_stays_for_threads_that_outlive_it(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("""
import pickle, threading, time
def function(): pass
def late():
    time.sleep(0.2)
    print(pickle.loads(pickle.dumps(function)) is function)
threading.Thread(target=late).start()
""")
    done = launch(tmp_path, "late.py")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_program_does_not_inherit_our_future_statements(tmp_path: Path) -> None:
    """It is compiled by its own rules."""
    program = tmp_path / "program.py"
    program.write_text("def f(x: int) -> None: ...\nprint(f.__annotations__['x'])\n")
    command = [sys.executable, "-m", "uring_trio", "run", "--backend=epoll", str(program)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert printed.stdout == "<class 'int'>\n"
