"""Instructions per operation, by callgrind, beside those of the record: ``make counts``.

    python tests/counts.py [--record] [--repeat N] [DOOR ...]

Time on a machine that others use says little, and a median of few rounds nothing at all. How
many instructions of its own a program executes is the same in every run, whatever else the
machine does, if the program is one to which nothing happens by chance: `counted.py` has those,
one for each *door*, the ways by which programs come to the ring. What the kernel executes is
not among them: system calls are counted elsewhere (`test_io_manager`, `test_accept_cost`).

A door's figure is the difference of two runs of different length, by the difference of their
lengths: what there is once in a run is in both. It is compared with the record, `counts.json`,
and more by `WORSE_MAX` fails. The record holds for one interpreter, trio, cffi, libc, compiler
and kind of processor; where another is found nothing is compared, and that is said. Some doors
are only shown, since their instructions are mostly others' or not the same in each run.

With ``--repeat`` all is counted so often, and a spread of more than `SPREAD_MAX` of what is
compared fails. With ``--record`` the record is written anew, of all doors.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cffi
import counted
import machine_speed

import uring_trio

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "counts.json"
PROGRAMS = ROOT / "tests" / "counted.py"
MARKS = ROOT / "tests" / "counted.c"

WORSE_MAX = 0.05
SPREAD_MAX = 0.01


@dataclass(frozen=True)
class Unit:
    """What a door is counted by.

    Attributes:
      word: for those who read.
      per_round: so many has a round.
      compared: whether more than the record fails.
    """

    word: str
    per_round: int
    compared: bool = True


UNITS = {
    "streams": Unit("send or receive", 4 * counted.PAIRS),
    "sockets": Unit("send or receive", 4 * counted.PAIRS),
    "datagrams": Unit("send or receive", 4 * counted.PAIRS),
    "gain": Unit("message and its echo", counted.ECHOES * counted.PAIRS),
    "gain_datagrams": Unit("datagram and its echo", counted.ECHOES * counted.PAIRS),
    "accept": Unit("connection", counted.PAIRS),
    "tls": Unit("send or receive", 4 * counted.PAIRS, compared=False),
    "thread": Unit("hop", counted.HOPS, compared=False),
}
COMPARED = [name for name, unit in UNITS.items() if unit.compared]

# Seconds of an idle machine; all doors take 20 there.
LIMIT_S = 180 * machine_speed.slowness()


class CannotCount(Exception):
    """Something that this needs is not here."""


# ---- counting -------------------------------------------------------------------------------


def count(doors: list[str]) -> dict[str, float]:
    """The instructions of one unit of each door.

    Raises:
      CannotCount: there is no valgrind, or none that can be told what to count.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotCount("there is no valgrind on this machine")
    report = uring_trio.probe()
    if report.backend != "io_uring":
        raise CannotCount(f"there is no io_uring here: {report.reason}")
    with tempfile.TemporaryDirectory() as directory:
        library = f"{directory}/counted.so"
        compiler = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", library, str(MARKS)]
        try:
            subprocess.run(compiler, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise CannotCount("valgrind's headers, or a C compiler, are not here") from exc
        done = subprocess.run(
            [
                *(valgrind, "--tool=callgrind", "--instr-atstart=no"),
                f"--callgrind-out-file={directory}/counts.%p",
                *(sys.executable, str(PROGRAMS), library, *doors),
            ],
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"callgrind ended with {done.returncode}:\n{done.stderr}")
        totals = dict(map(read_total, Path(directory).glob("counts.*")))
    few, many = counted.SIZES
    return {
        name: (totals[f"{name} {many}"] - totals[f"{name} {few}"])
        / ((many - few) * UNITS[name].per_round)
        for name in doors
    }


def environment() -> dict[str, str]:
    """The same in every run, and nothing of it slows the ring down."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("URING_TRIO_")}
    return {**kept, "PYTHONHASHSEED": "0"}


def read_total(path: Path) -> tuple[str, int]:
    """What callgrind has written at a mark: its name, and how many instructions."""
    text = path.read_text()
    name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
    # The last one is of what comes after all marks.
    return (name[1] if name else "", int(total[1]) if total else 0)


# ---- the record -----------------------------------------------------------------------------


def conditions() -> dict[str, str]:
    """What all must be equal to that of the record."""
    return {
        "machine": platform.machine(),
        "Python": sys.version,
        "trio": version("trio"),
        "cffi": cffi.__version__,
        "libc": os.confstr("CS_GNU_LIBC_VERSION") or "unknown",
        "compiler": engine_compiler(),
    }


def engine_compiler() -> str:
    """What the engine was compiled by: compilers leave a note in what they make."""
    from uring_trio import _engine

    notes = re.findall(rb"(?:GCC: \([^)\0]*\)|clang version) [^\0]+", read_engine(_engine))
    return ", ".join(sorted({note.decode() for note in notes})) or "unknown"


def read_engine(engine: object) -> bytes:
    return Path(str(getattr(engine, "__file__", ""))).read_bytes()


def differences(recorded: dict[str, str], here: dict[str, str]) -> list[str]:
    """What is not as it was when the record was made, in words."""
    return [
        f"{name} is {here.get(name)!r} here, {recorded.get(name)!r} in the record"
        for name in sorted(recorded.keys() | here.keys())
        if recorded.get(name) != here.get(name)
    ]


# ---- what is shown --------------------------------------------------------------------------


def is_worse(figure: float, recorded: float) -> bool:
    return figure > recorded * (1 + WORSE_MAX)


def spread(figures: list[float]) -> float:
    """How far apart they are, by the smallest of them."""
    return (max(figures) - min(figures)) / min(figures)


def judge(
    found: dict[str, list[float]], recorded: dict[str, float], *, comparable: bool
) -> tuple[list[str], list[str]]:
    """A line for each door, and the names of those that fail."""
    lines, failed = [], []
    for name, figures in found.items():
        unit = UNITS[name]
        words = f"{name:14} {min(figures):9,.0f} per {unit.word}"
        if len(figures) > 1:
            words += f"; {len(figures)} runs, apart by {spread(figures):.2%}"
            if unit.compared and spread(figures) > SPREAD_MAX:
                words += f", more than {SPREAD_MAX:.0%}: FAILED"
                failed.append(name)
        if name in recorded:
            words += f"; record {recorded[name]:,.0f}, {min(figures) / recorded[name] - 1:+.1%}"
        if not unit.compared:
            words += "; shown only"
        elif comparable and name not in recorded:
            words += "; not in the record: FAILED"
            failed.append(name)
        elif comparable and is_worse(min(figures), recorded[name]):
            words += f", more than {WORSE_MAX:.0%} worse: FAILED"
            failed.append(name)
        lines.append(words)
    return lines, sorted(set(failed))


def main(argv: list[str]) -> int:
    """Count, show and compare; or record."""
    parser = argparse.ArgumentParser(description="instructions per operation")
    parser.add_argument("doors", nargs="*", metavar="DOOR", help=f"of {', '.join(UNITS)}")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="count so often")
    parser.add_argument("--compared", action="store_true", help="the doors that are compared")
    parser.add_argument("--record", action="store_true", help="write the record anew")
    arguments = parser.parse_args(argv)
    doors = arguments.doors or (COMPARED if arguments.compared else list(UNITS))
    if unknown := set(doors) - set(UNITS):
        parser.error(f"there is no door {', '.join(sorted(unknown))}; there are {', '.join(UNITS)}")
    if arguments.record and set(doors) != set(UNITS):
        parser.error("the record is of all doors")
    started = time.monotonic()
    found: dict[str, list[float]] = {name: [] for name in doors}
    try:
        for _ in range(arguments.repeat):
            for name, figure in count(doors).items():
                found[name].append(figure)
    except CannotCount as exc:
        print(f"nothing was counted: {exc}")
        print(f"=== 1 skipped in {time.monotonic() - started:.2f}s ===")
        return 0
    here = conditions()
    if arguments.record:
        figures = {name: round(min(each)) for name, each in found.items()}
        record = {"conditions": here, "instructions": figures}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    record = json.loads(RECORD.read_text())
    apart = differences(record["conditions"], here)
    lines, failed = judge(found, record["instructions"], comparable=not apart)
    print(*lines, sep="\n")
    for difference in apart:
        print(f"not compared with the record: {difference}")
    passed = [name for name in doors if name not in failed and UNITS[name].compared]
    words = [f"{len(failed)} failed"] if failed else []
    words += [f"{len(passed)} {'skipped' if apart else 'passed'}"] if passed else []
    print(f"=== {', '.join(words) or '0 passed'} in {time.monotonic() - started:.2f}s ===")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
