"""``run.py`` on the oldest and the newest trio, on each Python that we support: ``make matrix``.

Each combination has an environment of its own under ``.matrix``. All of them install the
same wheel, built once by the oldest Python: it claims the stable ABI, and so this is
tested too. A Python that is not on this machine is named and left out.

    python tests/trio_suite/matrix.py [--python 3.12] [--trio 0.28.0]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MATRIX = ROOT / ".matrix"
SUITE = Path(__file__).with_name("run.py")

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Each release with what else it needs to be as it was.
TRIOS = {
    "0.28.0": ("pyOpenSSL==24.3.0",),  # later ones fail 24 of its DTLS tests, on stock trio too
    "newest": (),
}

# What trio's suite imports; it skips tests where one is missing.
SUITE_NEEDS = (
    "pytest",
    "pytest-timeout",
    "astor",
    "async_generator",
    "cryptography",
    "pyOpenSSL",
    "pyyaml",
    "trustme",
)


@dataclass
class Result:
    python: str
    trio: str
    passed: bool
    line: str
    seconds: float


def find_python(version: str) -> str | None:
    """A working interpreter of this version: on PATH, or one of pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += [str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in candidates:
        # pyenv's shims are on PATH for versions that they then refuse to start.
        if candidate and version_of(candidate) == version:
            return candidate
    return None


def version_of(python: str) -> str | None:
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def build_wheel(python: str) -> Path:
    """The wheel, built in an environment of its own."""
    target = MATRIX / "dist"
    shutil.rmtree(target, ignore_errors=True)
    builder = make_environment(python, MATRIX / "builder")
    pip(builder, "wheel", "--no-deps", "--wheel-dir", str(target), str(ROOT))
    (wheel,) = target.glob("*.whl")
    return wheel


def make_environment(python: str, directory: Path) -> Path:
    """The interpreter of a fresh virtual environment."""
    subprocess.run([python, "-m", "venv", "--clear", str(directory)], check=True)
    return directory / "bin" / "python"


def pip(python: Path, *arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([str(python), "-m", "pip", *arguments, *quiet], check=True)


def run_one(python: str, version: str, trio: str, wheel: Path) -> Result:
    """Set up one combination and run the comparison in it."""
    started = time.monotonic()
    environment = make_environment(python, MATRIX / f"python{version}-trio-{trio}")
    wanted = "trio" if trio == "newest" else f"trio=={trio}"
    pip(environment, "install", str(wheel), wanted, *SUITE_NEEDS, *TRIOS.get(trio, ()))
    done = subprocess.run(
        [str(environment), str(SUITE)],
        cwd=MATRIX,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    passed = done.returncode == 0
    lines = done.stdout.splitlines() or ["no output"]
    if not passed:
        print(done.stdout)
    installed = installed_trio(environment)
    return Result(version, installed, passed, lines[-1], time.monotonic() - started)


def installed_trio(python: Path) -> str:
    ask = "import trio; print(trio.__version__)"
    answer = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="trio's suite on each Python and trio")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="only this one")
    parser.add_argument("--trio", action="append", help="only this release, or 'newest'")
    arguments = parser.parse_args()
    MATRIX.mkdir(exist_ok=True)
    found = {version: find_python(version) for version in arguments.python or PYTHONS}
    pythons = {version: python for version, python in found.items() if python}
    if not pythons:
        print(f"none of Python {', '.join(found)} is on this machine")
        return 1
    # The oldest builds: an ABI is stable forwards, not backwards.
    wheel = build_wheel(next(iter(pythons.values())))
    print(f"built {wheel.name}", flush=True)
    results = []
    for version, python in pythons.items():
        for trio in arguments.trio or TRIOS:
            print(f"--- Python {version}, trio {trio}", flush=True)
            results.append(run_one(python, version, trio, wheel))
            print(results[-1].line, flush=True)
    print("\n--- summary")
    for result in results:
        word = "ok" if result.passed else "FAILED"
        print(f"Python {result.python:5} trio {result.trio:8} {word:7} {result.line}")
    for version in found.keys() - pythons.keys():
        print(f"Python {version:5} not on this machine, not run")
    failed = sum(not result.passed for result in results)
    words = f"{failed} failed, " if failed else ""
    seconds = sum(result.seconds for result in results)
    print(f"===== {words}{len(results) - failed} passed in {seconds:.2f}s =====")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
