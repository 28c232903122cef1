"""``python -m uring_trio doctor | run``: arguments only, the work is elsewhere."""

from __future__ import annotations

import argparse
import sys

from uring_trio import __version__

DESCRIPTION = "trio on Linux io_uring"
# It needs a C compiler, and what loads a server has no place in a user's process.
DEMO_IS_ELSEWHERE = (
    f"The demo comes with the source of uring_trio {__version__}, and not with the installed "
    "package: `make demo` in the source tree runs it (benchmarks/demo.py)."
)


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("python -m uring_trio", description=DESCRIPTION)
    root.add_argument("--version", action="version", version=f"uring_trio {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="tell whether trio gets io_uring here; if not, why, and what to do",
        description="Exit status: 0 with io_uring, 1 without, 2 on bad usage.",
    )
    doctor.add_argument("--json", action="store_true", help="the report as JSON")
    # The arguments of these two are for others to read: a script's are its own.
    for name, text in (
        ("run", "run an unchanged trio program on the ring"),
        ("demo", "tell where the comparison of an echo server on both is"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    return root


def main(argv: list[str]) -> int:
    """Run one of the commands and return its exit status."""
    if argv[:1] == ["run"]:
        from uring_trio import _launcher

        return _launcher.main(argv[1:])
    if argv[:1] == ["demo"]:
        print(DEMO_IS_ELSEWHERE, file=sys.stderr)
        return 2
    arguments = parser().parse_args(argv)
    from uring_trio import _doctor

    return _doctor.main(as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
