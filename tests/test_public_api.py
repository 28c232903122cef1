"""The public names are this list: adding one is a decision."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import uring_trio
from uring_trio import gain

PUBLIC = {
    "IOStatistics",
    "ProbeReport",
    "RingOptions",
    "UringUnavailable",
    "__version__",
    "anyio_options",
    "install",
    "probe",
    "run",
    "start_guest_run",
    "uninstall",
}
DOCUMENTED = sorted(PUBLIC - {"__version__"})
PUBLIC_MODULES = {"pytest_plugin", "gain"}

# What pip brings with us, and what that brings.
RUN_TIME = {"trio", "outcome", "_cffi_backend", "uring_trio"}
RUN_TIME |= {
    "attr",
    "attrs",
    "sortedcontainers",
    "idna",
    "sniffio",
    "exceptiongroup",
    "typing_extensions",
}


def test_all_is_the_list_and_nothing_else_looks_public() -> None:
    assert set(uring_trio.__all__) == PUBLIC
    others = {name for name in vars(uring_trio) if not name.startswith("_")} - PUBLIC
    assert others <= PUBLIC_MODULES | {"TYPE_CHECKING", "annotations", "sys", "version"}


def test_modules_are_private_but_those_meant_to_be_named() -> None:
    package = Path(uring_trio.__file__).parent
    names = {path.stem for path in package.glob("*.py")}
    names |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert {name for name in names if not name.startswith("_")} == PUBLIC_MODULES
    assert all(path.stem.startswith("_") for path in package.glob("gain/*.py"))


def test_all_of_the_callback_servers_is_what_looks_public_there() -> None:
    things = vars(gain).items()
    public = {name for name, thing in things if name[0] != "_" and not inspect.ismodule(thing)}
    assert public - {"annotations"} == set(gain.__all__)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_name_has_a_docstring_and_says_where_to_find_it(name: str) -> None:
    thing = getattr(uring_trio, name)
    assert inspect.getdoc(thing)
    assert thing.__module__ == "uring_trio"


def test_version_is_the_distributions() -> None:
    assert uring_trio.__version__ == importlib.metadata.version("uring_trio")


def test_types_are_declared() -> None:
    assert (Path(uring_trio.__file__).parent / "py.typed").exists()


def test_fields_of_the_reports() -> None:
    report = [field.name for field in dataclasses.fields(uring_trio.ProbeReport)]
    assert report == [
        "backend",
        "reason",
        "remedy",
        "kernel",
        "setup_flags",
        "features",
        "opcodes",
        "limits",
        "trio_version",
        "hot_paths",
        "problems",
    ]
    statistics = [field.name for field in dataclasses.fields(uring_trio.IOStatistics)]
    assert statistics == [
        "backend",
        "tasks_waiting_read",
        "tasks_waiting_write",
        "in_flight",
        "leases_out",
        "enters",
        "stale_cqes",
        "operations",
        "plain_calls",
        "stock_calls",
    ]


def test_exception_keeps_reason_and_remedy_through_pickle() -> None:
    exc = uring_trio.UringUnavailable("why", "what to do")
    assert isinstance(exc, RuntimeError)
    again = pickle.loads(pickle.dumps(exc))
    assert (again.reason, again.remedy, str(again)) == ("why", "what to do", str(exc))
    assert "why" in str(exc)
    assert "what to do" in str(exc)


def modules_after(code: str) -> set[str]:
    """What is loaded when a new interpreter has run *code*."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; {code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["uring_trio", "uring_trio.gain"])
def test_import_brings_in_the_run_time_dependencies_only(name: str) -> None:
    loaded = modules_after(f"sys.path[:0] = {sys.path!r}; import {name}")
    # What an environment's own start-up files import is not our doing.
    loaded -= modules_after("pass")
    packages = {module.partition(".")[0] for module in loaded}
    assert packages - sys.stdlib_module_names - RUN_TIME == set()


@pytest.mark.parametrize("name", ["uring_trio", "uring_trio._pytest_entry"])
def test_what_pytest_loads_in_every_session_brings_in_nothing(name: str) -> None:
    loaded = modules_after(f"sys.path[:0] = {sys.path!r}; import {name}")
    assert {module.partition(".")[0] for module in loaded} & {"trio", "anyio", "sniffio"} == set()


def test_beside_trio_the_public_names_are_loaded_at_once() -> None:
    # A program may become another user after its imports, who can read none of our files.
    assert "uring_trio._run" in modules_after(
        f"sys.path[:0] = {sys.path!r}; import trio, uring_trio"
    )


def test_names_that_are_not_there() -> None:
    assert set(dir(uring_trio)) >= PUBLIC
    with pytest.raises(AttributeError, match="'uring_trio' has no attribute 'Run'"):
        _ = uring_trio.Run  # type: ignore[attr-defined]


def test_who_does_not_ask_for_the_callback_servers_does_not_load_them() -> None:
    loaded = modules_after(f"sys.path[:0] = {sys.path!r}; import uring_trio")
    assert {name for name in loaded if name.startswith("uring_trio.gain")} == set()
