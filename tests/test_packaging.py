"""The wheel: one for every CPython from 3.10, complete, made without network.

Off Linux there is a wheel too, without the extension, and it runs on trio's own manager.
Callback servers want the ring: on a Linux without the extension they can be imported, and a
start says why there is none; elsewhere the import says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOT_TYPES = "uring_trio/_hot.pyi"
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "src")

# setup.py as it would run elsewhere. What setuptools itself imports by platform must be
# imported before.
ELSEWHERE = """
import runpy, sys
import setuptools.build_meta, setuptools.command.bdist_wheel, urllib.request
sys.platform = "darwin"
sys.argv = ["setup.py", "--quiet", "bdist_wheel", "--dist-dir", sys.argv[1]]
runpy.run_path("setup.py", run_name="__main__")
"""

RUN_WITHOUT_EXTENSION = """
import pathlib, sys
import trio, uring_trio
assert pathlib.Path(uring_trio.__file__).is_relative_to(sys.argv[1]), uring_trio.__file__
report = uring_trio.probe()
assert report.backend != "io_uring" and report.reason and report.remedy, report
async def main():
    await trio.sleep(0)
    return "ran"
assert uring_trio.run(main) == "ran"
try:
    uring_trio.run(main, backend="io_uring")
except uring_trio.UringUnavailable:
    pass
else:
    raise AssertionError("a demand for the ring must fail")
"""

SERVE_WITHOUT_EXTENSION = """
import pathlib, sys
import trio, uring_trio
from uring_trio import gain
assert pathlib.Path(gain.__file__).is_relative_to(sys.argv[1]), gain.__file__
class Handler(gain.EventHandler):
    def on_start(self, server):
        raise AssertionError("started")
    def on_read(self, conn, n):
        pass
def refused(start):
    try:
        start()
    except uring_trio.UringUnavailable as exc:
        assert exc.reason and exc.remedy, exc
    else:
        raise AssertionError("callback servers have nothing to fall back to")
for workers in 1, 2:
    options = {"workers": workers}
    refused(lambda: gain.listen_and_serve("tcp://127.0.0.1:0", Handler(), **options))
    async def main():
        await gain.serve("tcp://127.0.0.1:0", Handler(), **options)
    refused(lambda: uring_trio.run(main))
"""

# macOS and Windows lack many of Linux's names, so there no module would load by chance.
IMPORT_ELSEWHERE = """
import sys, socket
import trio
sys.platform = "darwin"
del socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC, socket.MSG_NOSIGNAL
import uring_trio
assert uring_trio.probe().backend != "io_uring"
try:
    import uring_trio.gain
except ImportError as exc:
    assert "Linux" in str(exc), exc
else:
    raise AssertionError("it can be imported, so it must be able to run")
"""


def run_python(*arguments: str, cwd: Path, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the package is built from, with nothing built."""
    root = tmp_path / "project"
    root.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "tests")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, root / name)
    return root


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the extension is Linux's")
@pytest.mark.timeout(180)  # compiles all of csrc
def test_wheel_is_complete_and_its_tag_says_abi3(project: Path, tmp_path: Path) -> None:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    run_python("-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), ".", cwd=project)
    wheel = only_wheel(tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert "-abi3-" not in wheel.name
        assert not any(name.startswith("uring_trio/_hot.") for name in names - {HOT_TYPES})
    else:
        assert "-cp310-abi3-linux" in wheel.name
        assert {"uring_trio/_engine.abi3.so", "uring_trio/_hot.abi3.so"} <= names
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {"uring_trio/__init__.py", "uring_trio/gain/__init__.py"} <= modules
    assert names >= modules | {"uring_trio/py.typed"}
    # What measures is not in it: no load generator, no demo.
    (extension,) = [
        name for name in names if name.startswith("uring_trio/_engine.") and "so" in name
    ]
    functions = set(re.findall(rb"\but_\w+", zipfile.ZipFile(wheel).read(extension)))
    assert b"ut_engine_wait" in functions
    assert not {name for name in functions if name.startswith(b"ut_load")}
    assert not {name for name in names if "demo" in name or "loadgen" in name}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"uring_trio"}


# setup.py with nothing to build but the hot paths.
BUILD_HOT = """
import runpy, sys, setuptools
setup = setuptools.setup
def without_engine(**settings):
    del settings["cffi_modules"]
    setup(**settings)
setuptools.setup = without_engine
sys.argv = ["setup.py", "--quiet", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="they are in Python here",
)
@pytest.mark.parametrize("can_be_built", [True, False])
def test_hot_paths_that_cannot_be_built_stop_nothing(project: Path, can_be_built: bool) -> None:
    if not can_be_built:
        with (project / "csrc" / "hot" / "module.c").open("a") as file:
            file.write("#error no compiler takes this\n")
    run_python("-c", BUILD_HOT, cwd=project)
    built = [path.name for path in (project / "src" / "uring_trio").glob("*.so")]
    assert built == (["_hot.abi3.so"] if can_be_built else [])


def test_off_linux_it_installs_without_the_extension_and_runs(
    project: Path, tmp_path: Path
) -> None:
    run_python("-c", ELSEWHERE, str(tmp_path), cwd=project)
    wheel = only_wheel(tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    assert not list(installed.rglob("*.so"))
    for program in (RUN_WITHOUT_EXTENSION, SERVE_WITHOUT_EXTENSION, IMPORT_ELSEWHERE):
        run_python("-c", program, str(installed), cwd=tmp_path, PYTHONPATH=str(installed))


# Of the repository, and of no use without it.
NOT_SHIPPED = (".ci/", ".gitignore")
BUILD_SDIST = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
SDIST_TIMEOUT_S = 50


def test_sdist_has_what_the_repository_has(tmp_path: Path) -> None:
    """So that it can be tested, not only built."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        [git, "ls-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SDIST_TIMEOUT_S,
        check=True,
    ).stdout.split()
    files = {name for name in listed if not name.startswith(NOT_SHIPPED)}
    tree = tmp_path / "tree"
    for name in files:
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    built = subprocess.run(
        [sys.executable, "-c", BUILD_SDIST, str(tmp_path)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=SDIST_TIMEOUT_S,
        check=True,
    )
    with tarfile.open(tmp_path / built.stdout.split()[-1]) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert files - shipped == set()
