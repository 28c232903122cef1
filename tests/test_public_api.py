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

PUBLIC = {
    "IOStatistics",
    "ProbeReport",
    "UringUnavailable",
    "__version__",
    "install",
    "probe",
    "run",
    "start_guest_run",
    "uninstall",
}
DOCUMENTED = sorted(PUBLIC - {"__version__"})
PUBLIC_MODULES = {"pytest_plugin"}

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
    assert others <= PUBLIC_MODULES | {"annotations", "version"}


def test_modules_are_private_but_those_meant_to_be_named() -> None:
    names = {path.stem for path in Path(uring_trio.__file__).parent.glob("*.py")}
    assert {name for name in names if not name.startswith("_")} == PUBLIC_MODULES


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
        "stock_calls",
    ]


def test_exception_keeps_reason_and_remedy_through_pickle() -> None:
    exc = uring_trio.UringUnavailable("why", "what to do")
    assert isinstance(exc, RuntimeError)
    again = pickle.loads(pickle.dumps(exc))
    assert (again.reason, again.remedy, str(again)) == ("why", "what to do", str(exc))
    assert "why" in str(exc)
    assert "what to do" in str(exc)


def test_import_brings_in_the_run_time_dependencies_only() -> None:
    code = "import sys, uring_trio; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    third_party = set(done.stdout.split()) - sys.stdlib_module_names - RUN_TIME
    # What an environment's own start-up files import is not our doing.
    started = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    third_party -= {name.partition(".")[0] for name in started.stdout.split()}
    assert third_party == set()
