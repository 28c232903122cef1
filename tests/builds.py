"""The extension built otherwise, for tests alone, and loaded in place of the installed one.

    python tests/builds.py NAME ARGUMENTS-OF-PYTHON ...
    python tests/builds.py address -m pytest tests/test_cancel.py

What is built
=============
`VARIANTS` has them. Each is the C of the product, whole and unchanged, with other flags, and
with files of csrc/tests linked to it. Other extensions of the tests, such as the simulated
kernel's, are made in the same way: what they are made of is an `Extension`, and the flags are
those of the variant that the process has.

Each lies in a folder that is named after a hash of all that it is made of, so it is built anew
when that changes, and only then; `build/` is nobody's but the tools', and `make clean` takes it
away. What nobody has built for a day goes by itself.

What they have to say
=====================
A guard and a sanitizer write what they find to a file of `REPORTS`, which is a folder, whichever
of the processes they are in. `Reports` reads it: conftest.py after each test, and `main` at the
end, which fails if there is anything.

The hot paths in C, the extension `_hot`, are built with the same flags, and lie beside the engine.

How it is loaded
================
By the environment, so that a program, and all that it starts, has the same engine: Python
imports `child_processes/sitecustomize.py` as it starts, and that answers an import of
`uring_trio._engine` with the file that `ENGINE` names, and one of `uring_trio._hot` with that
beside it. The product has no switch for it. A child
that is started without the environment, or with ``-I``, has the installed engine; `loaded` tells
which one it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cffi
import machine_speed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
C_TESTS = CSRC / "tests"
BUILDS = ROOT / "build" / "extensions"
LEAKS_OF_OTHERS = C_TESTS / "leaks_of_others.supp"
RACES_OF_OTHERS = C_TESTS / "races_of_others.supp"
CHILD_PROCESSES = Path(__file__).with_name("child_processes")

ENGINE = "URING_TRIO_TESTS_ENGINE"  # in the environment: the file that is loaded
MODULE = "uring_trio._engine"
FILE = "_engine.so"
HOT_FILE = "_hot.so"  # beside it
OLD_S = 24 * 3600  # what was built so long ago is nobody's any more
REPORTS = "URING_TRIO_TESTS_REPORTS"  # in the environment: the folder
HOOK = "URING_TRIO_TESTS_ENGINE_HOOK"  # in the environment: a module here, to `wrap` the engine

# As in csrc/build_ffi.py, but that a stack tells something.
FLAGS = ("-std=gnu11", "-g", "-fno-omit-frame-pointer", "-fvisibility=hidden", "-Wall", "-Wextra")

FAILING_DECLARATIONS = """
void fail_alloc_at(unsigned nth);
void fail_alloc_always(void);
int fail_alloc_happened(void);
unsigned fail_alloc_count(void);
int64_t fail_alloc_live(void);
const struct ut_kernel *fail_calls_over(const struct ut_kernel *real);
void fail_calls_at(unsigned place, unsigned nth, unsigned times, int error);
void fail_calls_also(unsigned place, unsigned nth, unsigned times, int error);
unsigned fail_calls_made(unsigned place);
unsigned fail_calls_failed(void);
int64_t fail_calls_mapped(void);
"""


@dataclass(frozen=True)
class Variant:
    """How one is built, and run.

    Attributes:
      flags: of the compiler, for all of its files and when it is linked.
      sources: files of csrc/tests that belong to it.
      wrapped: functions whose calls from other files go to ``__wrap_NAME`` of those.
      headers, declarations: what Python can call of those.
      preload: libraries of the compiler's that must be in a program before all others.
      environment: what its programs need to be told; {reports} is the folder's path.
      slower: how many times more its programs may take before that is a hang.
    """

    flags: tuple[str, ...] = ("-O2",)
    sources: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    declarations: str = ""
    preload: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    slower: float = 1


@dataclass(frozen=True)
class Extension:
    """What else than flags one is made of.

    Attributes:
      module: its name for Python.
      sources: its C, below csrc, without the module's own.
      headers: what that includes, below csrc.
      declarations: what Python can call of those.
      hot: the C of the extension that lies beside it, below csrc.
    """

    module: str
    sources: tuple[str, ...]
    headers: tuple[str, ...]
    declarations: str
    hot: tuple[str, ...] = ()


GUARD_DECLARATIONS = """
struct guard_counts { unsigned requests, buffers, faults; };
void guard_count(struct guard_counts *out);
void guard_pin(const void *memory, size_t size);
void guard_unpin(const void *memory);
const struct ut_kernel *guard_over(const struct ut_kernel *kernel);
"""

VARIANTS = {
    "plain": Variant(),
    # Its allocations fail on demand, `lib.fail_alloc_at(n)`, and its calls of the kernel's.
    "alloc": Variant(
        sources=("fail_alloc.c", "fail_calls.c"),
        wrapped=("malloc", "calloc", "realloc", "posix_memalign", "free"),
        headers=("fail_alloc.h", "fail_calls.h"),
        declarations=FAILING_DECLARATIONS,
    ),
    # With AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer.
    "address": Variant(
        # What is undefined ends a program: with both, only AddressSanitizer has a log.
        flags=("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        sources=("leaks_at_exit.c",),
        preload=("libasan.so",),
        environment={
            # Else Python's own allocator stands between us and them.
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": (
                "detect_leaks=1:leak_check_at_exit=0:log_path={reports}/address:"
                "detect_stack_use_after_return=1:strict_string_checks=1:"
                "allocator_may_return_null=1:"  # some tests ask for what nobody has
                # It takes what glibc has before a thread's variables for a size, reads what is
                # no memory, and ends the program. Nothing of ours is a thread's variable.
                "intercept_tls_get_addr=0"
            ),
            "LSAN_OPTIONS": f"suppressions={LEAKS_OF_OTHERS}:print_suppressions=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        slower=3,
    ),
    # With ThreadSanitizer. Of Python it sees the locks alone, which order what ours does.
    "thread": Variant(
        flags=("-O1", "-fsanitize=thread", "-Wno-tsan"),  # as in csrc/tests/Makefile
        preload=("libtsan.so",),
        environment={
            "TSAN_OPTIONS": (
                f"die_after_fork=0:log_path={{reports}}/thread:suppressions={RACES_OF_OTHERS}"
            )
        },
        slower=3,
    ),
    # Whatever the kernel works on is between protected pages, and is left alone: see guard.c.
    "guard": Variant(
        sources=("guard.c", "guard_memory.c", "guard_operations.c"),
        wrapped=(
            *("posix_memalign", "free", "ut_engine_cancel", "ut_engine_wait"),
            *("ut_prep_recv_into", "ut_prep_send", "ut_prep_send_from", "ut_prep_write"),
            *("ut_prep_recvmsg", "ut_prep_sendmsg", "ut_prep_accept", "ut_prep_connect"),
        ),
        headers=("guard.h",),
        declarations=GUARD_DECLARATIONS,
        environment={
            HOOK: "guarded.py",
            "UT_GUARD_LOG": "{reports}/guard",
            "PYTHONMALLOC": "debug",
        },
        slower=3,
    ),
}


# ---- building -----------------------------------------------------------------------------


def compiler() -> list[str]:
    """The one that Python's own extensions are built with."""
    found = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return shlex.split(found)


def said(command: list[str]) -> str:
    """What a program prints.

    Raises:
      RuntimeError: it failed; with all that it said.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def in_root() -> Iterator[None]:
    """csrc/build_ffi.py wants to be run there."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def product(variant: Variant) -> Extension:
    """The product's own, with what belongs to a variant."""
    with in_root():
        build_ffi = runpy.run_path(str(CSRC / "build_ffi.py"))
    declarations = (CSRC / build_ffi["DECLARATIONS"]).read_text(encoding="utf-8")
    return Extension(
        MODULE,
        (
            *sorted(path.name for path in CSRC.glob("*.c")),
            *(f"tests/{name}" for name in variant.sources),
        ),
        (*build_ffi["HEADERS"], *(f"tests/{name}" for name in variant.headers)),
        declarations + variant.declarations,
        () if sysconfig.get_config_var("Py_GIL_DISABLED") else hot_sources(),
    )


def hot_sources() -> tuple[str, ...]:
    """Those of `_hot`, as setup.py has them."""
    return tuple(f"hot/{path.name}" for path in sorted((CSRC / "hot").glob("*.c")))


def write_module(extension: Extension, path: Path) -> None:
    """Write the C of the module itself."""
    ffi = cffi.FFI()
    ffi.cdef(extension.declarations)
    includes = "".join(f'#include "{name}"\n' for name in extension.headers)
    ffi.set_source(extension.module, includes)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        ffi.emit_c_code(str(path))


def digest(extension: Extension, variant: Variant) -> str:
    """Of all that one is made of."""
    content = hashlib.sha256()
    made_by = (compiler(), FLAGS, sys.version, cffi.__version__, platform.machine())
    made_of = (variant.flags, variant.wrapped, extension)
    content.update(repr((made_by, made_of)).encode())
    content.update(said([*compiler(), "--version"]).encode())
    own = any(name.startswith("tests/") for name in extension.sources)
    headers = [*CSRC.glob("*.h"), *(C_TESTS.glob("*.h") if own else ())]
    if extension.hot:
        headers += (CSRC / "hot").glob("*.h")
    sources = (*extension.sources, *extension.hot)
    for path in [*sorted(headers), *(CSRC / name for name in sources)]:
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


def compile_extension(extension: Extension, variant: Variant, work: Path, made: Path) -> None:
    """Make the file of one.

    Raises:
      RuntimeError: the compiler refuses it.
    """
    module = work / "module.c"
    write_module(extension, module)
    said(
        [
            *compiler(),
            *("-shared", "-fPIC", *FLAGS, *variant.flags),
            *(f"-Wl,--wrap={function}" for function in variant.wrapped),
            *(f"-I{folder}" for folder in (sysconfig.get_path("include"), CSRC)),
            *(str(path) for path in (module, *(CSRC / name for name in extension.sources))),
            *("-pthread", "-o", str(made)),
        ]
    )
    if extension.hot:
        said(
            [
                *compiler(),
                *("-shared", "-fPIC", *FLAGS, *variant.flags, "-DPy_LIMITED_API=0x030A0000"),
                *(f"-I{sysconfig.get_path('include')}", *(str(CSRC / n) for n in extension.hot)),
                *("-o", str(made.with_name(HOT_FILE))),
            ]
        )


def built(extension: Extension, variant: Variant, name: str) -> Path:
    """The folder of one that is called so, in which it is `FILE`; it is built if it is not there.

    Raises:
      RuntimeError: the compiler refuses it.
    """
    folder = BUILDS / f"{name}-{digest(extension, variant)}"
    if (folder / FILE).exists():
        return folder
    BUILDS.mkdir(parents=True, exist_ok=True)
    # Several may build it at the same time: whoever is first has built it.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=BUILDS) as work:
        made = Path(work, "made")
        made.mkdir()
        compile_extension(extension, variant, Path(work), made / FILE)
        made.chmod(0o755)  # some tests have their children become another user
        with contextlib.suppress(OSError):
            made.rename(folder)
    for other in BUILDS.glob(f"{name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > OLD_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


@functools.cache
def build(name: str) -> Path:
    """The folder of a variant, which is built if it is not there.

    Raises:
      RuntimeError: the compiler refuses it.
    """
    variant = VARIANTS[name]
    return built(product(variant), variant, name)


def build_beside(extension: Extension, name: str) -> Path:
    """The file of another extension than the product's, as this process's variant is built.

    Raises:
      RuntimeError: the compiler refuses it.
    """
    variant = inherited() or "plain"
    flags = Variant(flags=VARIANTS[variant].flags)  # the rest is between the engine and others
    return built(extension, flags, f"{name}.{variant}") / FILE


# ---- running ------------------------------------------------------------------------------


def library(name: str) -> str:
    """Where the compiler has one of its libraries.

    Raises:
      RuntimeError: it has none of this name.
    """
    found = said([*compiler(), f"-print-file-name={name}"]).strip()
    if not os.path.isabs(found):
        raise RuntimeError(f"{shlex.join(compiler())} has no {name}")
    return found


def in_front(values: list[str], inherited: str | None) -> str:
    """A list of the environment's kind, with these first."""
    return os.pathsep.join([*values, *([inherited] if inherited else [])])


def environment(
    name: str, base: Mapping[str, str] | None = None, *, reports: Path | None = None
) -> dict[str, str]:
    """That of a program which shall have a variant.

    Args:
      name: of the variant.
      base: what it is built on; None: this process's.
      reports: the folder for what there is to say; None: wherever the variant says it.
    """
    variant = VARIANTS[name]
    changed = dict(os.environ if base is None else base)
    changed[ENGINE] = str(build(name) / FILE)
    changed[machine_speed.VARIABLE] = f"{machine_speed.slowness() * variant.slower:.2f}"
    changed["PYTHONPATH"] = in_front([str(CHILD_PROCESSES)], changed.get("PYTHONPATH"))
    if variant.preload:
        libraries = [library(each) for each in variant.preload]
        changed["LD_PRELOAD"] = in_front(libraries, changed.get("LD_PRELOAD"))
    if reports is not None:
        changed[REPORTS] = str(reports)
    for variable, value in variant.environment.items():
        if reports is not None or "{reports}" not in value:
            changed[variable] = value.replace("{reports}", str(reports))
    return changed


def command(name: str, arguments: list[str]) -> list[str]:
    """A Python that shall have a variant, with these arguments; in its `environment`."""
    python = [sys.executable, *arguments]
    if not VARIANTS[name].preload:
        return python
    # Sanitizers of GCC up to 13 die at random where the kernel randomizes 32 bits of an address.
    return ["setarch", "-R", *python]


def variant_of(file: Path) -> str:
    """The name of the variant whose file this is; empty: of none."""
    return file.parent.name.rpartition("-")[0] if file.parent.parent == BUILDS else ""


def inherited() -> str:
    """The name of the variant that this process was started with; empty: with none."""
    return variant_of(Path(os.environ[ENGINE])) if ENGINE in os.environ else ""


def slower() -> float:
    """How many times longer this process may take because of its variant."""
    variant = inherited()
    return VARIANTS[variant].slower if variant else 1.0


def loaded() -> str:
    """The name of the variant that this process has; empty: the installed engine."""
    from uring_trio import _kernel

    ffi, _ = _kernel.load_extension()
    assert ffi is not None
    return variant_of(Path(str(sys.modules[MODULE].__file__)))


class Reports:
    """What a variant has found, in whatever process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: dict[Path, int] = {}

    def news(self) -> list[str]:
        """What was written since the last call, a line for each line."""
        lines: list[str] = []
        for path in sorted(self.folder.iterdir()):
            with path.open(errors="replace") as file:
                file.seek(self._told.get(path, 0))
                lines += file.read().splitlines()
                self._told[path] = file.tell()
        return lines


def inherited_reports() -> Reports | None:
    """Those of the variant that this process was started with, if it has any."""
    folder = os.environ.get(REPORTS)
    return None if folder is None else Reports(Path(folder))


def run(name: str, arguments: list[str], base: Mapping[str, str] | None = None) -> int:
    """Run a Python that has a variant: its status, or 1 if there is anything to report."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        reports = Reports(Path(folder))
        reports.folder.chmod(0o777)  # some tests have their children become another user
        env = environment(name, base, reports=reports.folder)
        status = subprocess.run(command(name, arguments), env=env, check=False).returncode
        found = reports.news()
    print(*found, f"{name}: {len(found)} lines of reports", sep="\n", flush=True)
    return 1 if found else status


def main(arguments: list[str]) -> int:
    """Run a Python that has the variant which is named."""
    if not arguments or arguments[0] not in VARIANTS:
        print(f"{__doc__}\nNAME is one of {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    name, *rest = arguments
    return run(name, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
