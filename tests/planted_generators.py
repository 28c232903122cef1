"""Generators with faults that are known, for the tests of `by_seed.py` and `fuzz.py`.

python tests/planted_generators.py ...       as by_seed.py
python tests/planted_generators.py fuzz FOLDER ...  as fuzz.py, which keeps its state there
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import by_seed
import children

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from by_seed import Plan

WORDS = ("open", "send", "receive", "cancel", "close")


class Planted:
    """Random words with a number each; *check* sees all of them and the options and choices."""

    def __init__(self, name: str, check: Callable[[Plan], None]) -> None:
        self.name = name
        self.check = check

    def draw(self, random: random.Random) -> Plan:
        return {
            "options": {"fast": random.random() < 0.5, "size": random.randrange(100)},
            "steps": [
                [random.choice(WORDS), random.randrange(1000)]
                for _ in range(random.randrange(1, 12))
            ],
            "kernel": [random.randrange(4) for _ in range(random.randrange(20))],
        }

    def run(self, plan: Plan) -> None:
        for step in plan["steps"]:
            by_seed.note(f"{step[0]} {step[1]}")
        self.check(plan)


def has_pair(plan: Plan) -> bool:
    """A cancel of more than 100, and somewhere behind it a close."""
    seen = False
    for word, number in plan["steps"]:
        if word == "close" and seen:
            return True
        seen |= word == "cancel" and number > 100
    return False


def pair(plan: Plan) -> None:
    # Another fault, that a shorter plan must not be taken for.
    if not plan["steps"]:
        raise ValueError("no steps")
    assert not has_pair(plan), "cancel before close"


def late_choice(plan: Plan) -> None:
    assert sum(plan["kernel"][5:7]) < 3 or not plan["options"].get("fast")


def hangs(plan: Plan) -> None:
    while has_pair(plan):
        time.sleep(1)


def hangs_for_long(plan: Plan) -> None:
    Path(plan["options"]["pid"]).write_text(str(os.getpid()))
    hangs(plan)


def stuck_for_long(plan: Plan) -> None:
    Path(plan["options"]["pid"]).write_text(str(os.getpid()))
    stuck(plan)


def stuck(plan: Plan) -> None:
    # What no exception ends: a lock that is never given back.
    if has_pair(plan):
        lock = threading.Lock()
        lock.acquire()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        lock.acquire()


def dies(plan: Plan) -> None:
    if has_pair(plan):
        os.kill(os.getpid(), signal.SIGSEGV)


def exits(plan: Plan) -> None:
    if has_pair(plan):
        os._exit(3)


def unseen(plan: Plan) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            raise KeyError("nobody can catch this")

    if has_pair(plan):
        Cycle()
        gc.collect()


def by_hash(plan: Plan) -> None:
    by_seed.note(str(hash("differs from process to process")))


def passes(plan: Plan) -> None:
    pass


def prepared(plan: Plan) -> None:
    assert _prepared == [None]


_prepared: list[None] = []


def prepare() -> None:
    print("prepared", flush=True)
    _prepared.append(None)


def needs_a_ring(plan: Plan) -> None:
    raise AssertionError(f"the product is {sys.modules['uring_trio'].__file__}")


CHECKS: tuple[Callable[[Plan], Any], ...] = (
    *(pair, late_choice, hangs, stuck, dies, exits, unseen, by_hash, passes, needs_a_ring),
    *(hangs_for_long, stuck_for_long, prepared),
)
for check in CHECKS:
    name = f"planted-{check.__name__.replace('_', '-')}"
    limit_s = 60.0 if name.endswith("-for-long") else 0.2
    by_seed.register(
        Planted(name, check),
        real=check is needs_a_ring,
        limit_s=limit_s,
        prepare=prepare if check is prepared else None,
    )


if __name__ == "__main__":
    children.end_with_parent()
    if sys.argv[1] == "fuzz":
        import fuzz

        # A folder for what is found, and for the plans that once failed.
        by_seed.FOUND, *arguments = Path(sys.argv[2]), *sys.argv[3:]
        fuzz.FAILED_PLANS = by_seed.FOUND / "failed_plans"
        sys.exit(fuzz.main(arguments))
    sys.exit(by_seed.main(sys.argv[1:]))
