"""``compare.py`` by all routes, on the oldest anyio that we support and the newest: ``make anyio``.

Each release has an environment of its own under ``.matrix``, with this package as a wheel.

    python tests/anyio_suite/releases.py [--anyio 4.14.0]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "trio_suite"))
from matrix import MATRIX, build_wheel, make_environment, pip

COMPARE = Path(__file__).resolve().with_name("compare.py")

# Each release with what else it needs to be as it was.
RELEASES: dict[str, tuple[str, ...]] = {
    "4.14.0": ("pytest<9.1",),  # its plugin imports a name that later ones deprecate
    "newest": (),
}

# What anyio's suite imports; it skips tests where uvloop is missing.
SUITE_NEEDS = (
    "blockbuster",
    "exceptiongroup",
    "hypothesis",
    "psutil",
    "pytest>=9",
    "pytest-mock",
    "pytest-timeout",
    "trustme",
    "truststore",
    "uvloop",
)
ROUTES = ("--route=options", "--route=name", "--route=install")


def run_one(release: str, wheel: Path) -> tuple[bool, str]:
    """Set up one release and run the comparison in it; whether it passed, and its last lines."""
    environment = make_environment(sys.executable, MATRIX / f"anyio-{release}")
    wanted = "anyio" if release == "newest" else f"anyio=={release}"
    pip(environment, "install", str(wheel), wanted, *SUITE_NEEDS, *RELEASES.get(release, ()))
    done = subprocess.run(
        [str(environment), str(COMPARE), *ROUTES],
        cwd=MATRIX,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    print(done.stdout, flush=True)
    lines = done.stdout.splitlines() or ["no output"]
    return done.returncode == 0, lines[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description="anyio's suite on its oldest and newest release")
    parser.add_argument("--anyio", action="append", help="only this release, or 'newest'")
    arguments = parser.parse_args()
    MATRIX.mkdir(exist_ok=True)
    started = time.monotonic()
    wheel = build_wheel(sys.executable)
    results = {release: run_one(release, wheel) for release in arguments.anyio or RELEASES}
    print("--- summary")
    for release, (passed, line) in results.items():
        print(f"anyio {release:8} {'ok' if passed else 'FAILED':7} {line}")
    failed = sum(not passed for passed, _ in results.values())
    words = f"{failed} failed, " if failed else ""
    seconds = time.monotonic() - started
    print(f"===== {words}{len(results) - failed} passed in {seconds:.2f}s =====")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
