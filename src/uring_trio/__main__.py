"""``python -m uring_trio doctor | run | demo``: arguments only, the work is elsewhere."""

from __future__ import annotations

import argparse
import sys

from uring_trio import __version__

DESCRIPTION = "trio on Linux io_uring"


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
        ("demo", "an echo server on the ring and on stock trio, under load, compared"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    return root


def main(argv: list[str]) -> int:
    """Run one of the commands and return its exit status."""
    if argv[:1] == ["run"]:
        from uring_trio import _launcher

        return _launcher.main(argv[1:])
    if argv[:1] == ["demo"]:
        from uring_trio import _demo

        return _demo.main(argv[1:])
    arguments = parser().parse_args(argv)
    from uring_trio import _doctor

    return _doctor.main(as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
