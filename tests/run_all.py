"""Every check of the project, one after the other, with one summary: ``make test``.

A failing check does not stop the others. ``make test`` is to take a quarter of an hour on two
cores; what does not fit into that is among the checks of ``make test-all``.

A hang is found in two ways. A check that gives no sign of life for `SILENCE_S` is ended,
wherever it runs: a line or a dot of its output, or, where it prints nothing until its end, CPU
time that it used. And each check has a limit for the whole, in seconds of the machine that it
was measured on: the clock runs slower here as the machine is slower, and that is looked at
again all the time, since other work comes and goes. What is ended is asked for the stacks of
all of its Pythons first.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import machine_speed

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

PYTEST_SUMMARY = re.compile(r"^=* ?(\d+ [a-z]+(?:, \d+ [a-z]+)*) in [\d.]+s\b")
PYTEST_COUNT = re.compile(r"(\d+) ([a-z]+)")

# Seconds. A test of pytest's has less, so that the test is named where it is one that hangs.
SILENCE_S = 110
TEST_LIMIT_S = 60
TEST_LIMIT_MAX_S = 90
# How often a check is looked at, and how long a look at the machine takes (of one core).
LOOK_S = 5.0
LOOK_ROUNDS = 3
# Of pytest, beside each other: as many as the machine has cores where limits were measured.
PROCESSES = 2
# For the stacks, from the signal that asks for them to the one that ends all.
STACKS_S = 5.0


# Checks whose tests count one by one in the last line.
OWN_TESTS = ("pytest", "ecosystem", "long tests", "counts")

# What is run a second time with all fast ways off (see `_fast_ways`) in ``make test``: a
# part in which each of them, and each kind of socket and callback, has its turn.
PLAIN_WAYS = (
    *("fast_ways", "streams", "stream_rules", "sockets_stream", "sockets_datagram", "cancel"),
    *("io_manager", "readiness", "accept_cost", "low_water", "fd_stream_kinds", "model"),
    *("gain_callbacks", "gain_backpressure", "gain_buffers", "gain_eof", "gain_server"),
    *("gain_async_handler", "gain_tls", "gain_udp", "datagrams_at_once", "gain_udp_kept"),
)

# What is run a second time with the hot paths in Python (see `_hot_parts`): of streams, and of
# what wakes their tasks.
HOT_PATHS = (
    *("hot", "fast_ways", "streams", "stream_rules", "cancel", "model", "instruments", "cycles"),
    *("slots", "lines", "guest", "ring_lost", "low_water", "sockets_stream"),
)


@dataclass
class Check:
    """A command, how long it may take, and what became of it.

    Attributes:
      name: what it is called on the command line and in the summary.
      command: what is run, in the root of the project.
      limit_s: how long it may take on the machine where this was measured, idle.
      quiet: it prints nothing until its end, so that the CPU tells whether it works.
      always: it is part of ``make test``, and not of ``make test-all`` alone.
    """

    name: str
    command: list[str]
    limit_s: int
    quiet: bool = False
    always: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    passed: bool = False
    seconds: float = 0.0


def checks(slowness: float = 1.0) -> list[Check]:
    """All checks; the quick ones first, so that a slip shows early."""
    python = sys.executable
    limit_s = min(TEST_LIMIT_S * slowness, TEST_LIMIT_MAX_S)
    # pytest's own dump comes before its limit, so that a stuck C call is shown too.
    limits = [f"--timeout={limit_s:.0f}", "-o", f"faulthandler_timeout={limit_s - 10:.0f}"]
    # Unbuffered: a dot that is not seen is no sign of life.
    pytest = [python, "-u", "-m", "pytest", "-q", *limits]
    # A file's tests in one process, in their order: half of them wait, and not for the CPU.
    side_by_side = ["-n", str(PROCESSES), "--dist", "loadfile"]
    unbuffered = [python, "-u"]
    plainly = ["env", "URING_TRIO_FAST_WAYS=off", *pytest]
    plain_files = [f"tests/test_{name}.py" for name in PLAIN_WAYS]
    in_python = ["env", "URING_TRIO_PURE=1", *pytest]
    hot_files = [f"tests/test_{name}.py" for name in HOT_PATHS]
    return [
        Check("ruff check", [str(BIN / "ruff"), "check", "."], 60),
        Check("ruff format", [str(BIN / "ruff"), "format", "--check", "."], 60),
        Check("mypy", [str(BIN / "mypy")], 180, quiet=True),
        Check("C tests", ["make", "-C", "csrc/tests", "check"], 180, quiet=True),
        Check(
            "pytest", [*pytest, *side_by_side, "-m", "not long", "--ignore=tests/ecosystem"], 600
        ),
        Check(
            "plain ways",
            [*plainly, *side_by_side, "-m", "not long", *plain_files],
            240,
        ),
        Check(
            "hot paths in Python",
            [*in_python, *side_by_side, "-m", "not long", *hot_files],
            240,
        ),
        Check("ecosystem", [*pytest, "-m", "not long", "tests/ecosystem"], 120),
        Check("trio's suite", [*unbuffered, "tests/trio_suite/run.py"], 420),
        Check("anyio's suite", [*unbuffered, "tests/anyio_suite/compare.py"], 330),
        Check("counts", [*unbuffered, "tests/counts.py", "--compared"], 120, quiet=True),
        Check("long tests", [*pytest, "-m", "long"], 1800, always=False),
        # Longer than it takes: what is under way at the end goes on to its own.
        Check("fuzz", [*unbuffered, "tests/fuzz.py", "--seconds", "600"], 900, always=False),
        Check("mutations", [*unbuffered, "tests/mutations.py"], 1800, quiet=True, always=False),
        Check("sanitizers", [*unbuffered, "tests/sanitize.py"], 3600, always=False),
        Check(
            "hot paths in Python, all",
            [*in_python, *side_by_side, "-m", "not long", "--ignore=tests/ecosystem"],
            900,
            always=False,
        ),
        Check(
            "plain ways, all",
            [*plainly, *side_by_side, "-m", "not long", "--ignore=tests/ecosystem"],
            900,
            always=False,
        ),
        Check(
            "other projects' suites",
            [*unbuffered, "tests/ecosystem/suites.py"],
            1200,
            quiet=True,
            always=False,
        ),
        Check(
            "anyio's releases",
            [*unbuffered, "tests/anyio_suite/releases.py"],
            1800,
            quiet=True,
            always=False,
        ),
        Check(
            "trio's releases",
            [*unbuffered, "tests/trio_suite/matrix.py"],
            3600,
            quiet=True,
            always=False,
        ),
    ]


# ---- what a check has started ------------------------------------------------------------


def members(session: int) -> list[int]:
    """The processes of a session, by id: a check leads its own."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if int(fields_of(int(name))[3]) == session:
                    found.append(int(name))
    return found


def fields_of(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: the second may have spaces in it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_ticks(session: int) -> int:
    """CPU time of a session's processes, and of those that they have waited for."""
    total = 0
    for pid in members(session):
        with contextlib.suppress(OSError):
            total += sum(int(ticks) for ticks in fields_of(pid)[11:15])
    return total


def end_session(session: int) -> None:
    """Have the Pythons of a check print their stacks, and end all that it started."""
    for pid in members(session):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = Path(f"/proc/{pid}/wchan").read_text() or "running"
            print(f"process {pid}, {where}: {command}", flush=True)
    # Who has faulthandler answers SIGABRT with the stacks of all threads, and ends.
    for pid in members(session):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGABRT)
    deadline = time.monotonic() + STACKS_S
    while members(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in members(session):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


class Watch:
    """Whether a check lives, and how much of its time it has used."""

    def __init__(self, check: Check, session: int) -> None:
        self.check = check
        self.session = session
        self.used_s = 0.0  # by the clock of the machine where limits were measured
        self.looked_at = self.alive_at = time.monotonic()
        self.ticks = 0

    def heard(self) -> None:
        """It has printed something."""
        self.alive_at = time.monotonic()

    def look(self) -> str | None:
        """Why it must end now, or None."""
        slowness = machine_speed.measure(LOOK_ROUNDS)
        now = time.monotonic()
        self.used_s += (now - self.looked_at) / slowness
        self.looked_at = now
        if self.check.quiet:
            ticks = cpu_ticks(self.session)
            if ticks != self.ticks:
                self.ticks, self.alive_at = ticks, now
        if now - self.alive_at > SILENCE_S:
            return f"no sign of life for {SILENCE_S} s"
        if self.used_s > self.check.limit_s:
            return f"it took longer than {self.check.limit_s} s of a machine at full speed"
        return None


# ---- running -----------------------------------------------------------------------------


def run_check(check: Check) -> None:
    """Run one check, show its output as it comes, and note result and counts."""
    print(f"\n--- {check.name}: {' '.join(check.command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        check.command,
        cwd=ROOT,
        # For the stacks of what pytest has not armed by itself.
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        text, reason = follow(output, Watch(check, process.pid))
    check.passed = process.wait() == 0 and reason is None
    if reason is not None:
        print(f"\n{check.name}: {reason}: ended", flush=True)
    for line in text.splitlines():
        if match := PYTEST_SUMMARY.match(line):
            check.counts = {word: int(n) for n, word in PYTEST_COUNT.findall(match[1])}
    check.seconds = time.monotonic() - started


def follow(output: IO[bytes], watch: Watch) -> tuple[str, str | None]:
    """Show what comes until its end: all of it, and why the check was ended, if it was."""
    chunks: list[bytes] = []
    reason, end = None, math.inf
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        # What has left the session may hold our end of the pipe open for ever.
        while time.monotonic() < end:
            if selector.select(LOOK_S):
                chunk = os.read(output.fileno(), 1 << 16)
                if not chunk:
                    break
                chunks.append(chunk)
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
                watch.heard()
            if reason is None and time.monotonic() - watch.looked_at >= LOOK_S:
                reason = watch.look()
                if reason is not None:
                    print(f"\n{watch.check.name}: {reason}", flush=True)
                    end_session(watch.session)
                    end = time.monotonic() + STACKS_S
    return b"".join(chunks).decode(errors="replace"), reason


def print_summary(done: list[Check]) -> bool:
    """A line for each check, then one for all in pytest's form; True if all passed."""
    total = {"failed": 0, "passed": 0, "skipped": 0}
    print("\n--- summary")
    for check in done:
        counts = ", ".join(f"{n} {word}" for word, n in check.counts.items())
        result = "ok" if check.passed else "FAILED"
        print(f"{check.name:14} {result:7} {check.seconds:6.1f} s  {counts}")
        # The project's own tests count one by one, everything else as one test: the
        # runs of trio's suite would drown them.
        own = check.counts if check.name in OWN_TESTS else {}
        for word in total:
            total[word] += own.get(word, 0)
        total["failed"] += own.get("error", 0) + own.get("errors", 0)
        if not own or (not check.passed and not total["failed"]):
            total["passed" if check.passed else "failed"] += 1
    words = ", ".join(f"{n} {word}" for word, n in total.items() if n)
    print(f"===== {words} in {sum(check.seconds for check in done):.2f}s =====", flush=True)
    return all(check.passed for check in done)


def choose(known: list[Check], names: list[str], *, whole: bool) -> list[Check]:
    """The checks that are wanted: all whose names contain one of *names*, or all of a kind.

    Raises:
      ValueError: a name is part of none.
    """
    for name in names:
        if not any(name in check.name for check in known):
            listed = "\n".join(f"  {check.name}" for check in known)
            raise ValueError(f"no check has {name!r} in its name; there are\n{listed}")
    if names:
        return [check for check in known if any(name in check.name for name in names)]
    return [check for check in known if check.always or whole]


def main(argv: list[str]) -> int:
    """Run all checks, or those that are named."""
    parser = argparse.ArgumentParser(description="the checks of the project")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="only checks with this in the name"
    )
    parser.add_argument("--all", action="store_true", help="also what takes longer")
    arguments = parser.parse_args(argv)
    # A shell starts a background job with SIGINT ignored, and children inherit that; tests of
    # KeyboardInterrupt would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    slowness = machine_speed.slowness()
    try:
        chosen = choose(checks(slowness), arguments.names, whole=arguments.all)
    except ValueError as exc:
        parser.error(str(exc))
    if slowness > 1:
        print(f"this machine is {slowness:.1f} times slower than where limits were measured")
    for check in chosen:
        # Each is told anew: what was busy may be idle now.
        os.environ.pop(machine_speed.VARIABLE)
        machine_speed.slowness()
        run_check(check)
    return 0 if print_summary(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
