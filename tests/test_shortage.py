"""No memory for a ring: the limit is named that it was, and no other."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import sandbox
from marks import needs_ring

import uring_trio
from uring_trio import _kernel, _remedies, _shortage

if TYPE_CHECKING:
    from pathlib import Path

# A limit just above what the process uses; then what a run is on, and what is said of it.
UNDER_A_LIMIT = """
import json, re, resource, sys, trio, uring_trio
name, field, room_kib = sys.argv[1:]
async def main():
    return trio.lowlevel.current_statistics().io_statistics.backend
used = int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10
limit = used + (int(room_kib) << 10)
resource.setrlimit(getattr(resource, name), (limit, limit))
seen = {"auto": uring_trio.run(main), "stock": trio.run(main)}
report = uring_trio.probe()
seen |= {"promised": report.backend, "reason": report.reason, "remedy": report.remedy}
seen["limit_kib"] = limit >> 10
try:
    seen["demanded"] = uring_trio.run(main, backend="io_uring")
except uring_trio.UringUnavailable as exc:
    seen["demanded"] = exc.reason
print(json.dumps(seen))
"""


def under_a_limit(name: str, field: str, room_kib: int) -> dict[str, Any]:
    done = sandbox.run_python("NONE", UNDER_A_LIMIT, name, field, str(room_kib))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


LIMITS = [("RLIMIT_AS", "VmSize", "ulimit -v"), ("RLIMIT_DATA", "VmData", "ulimit -d")]


@needs_ring
@pytest.mark.parametrize(("name", "field", "remedy"), LIMITS)
@pytest.mark.parametrize("room_kib", [600, 2_400, 8_000])
def test_limit_on_address_space_is_named_and_that_on_locked_memory_is_not(
    name: str, field: str, remedy: str, room_kib: int
) -> None:
    seen = under_a_limit(name, field, room_kib)
    assert seen["auto"] == seen["stock"] == seen["promised"] == "epoll"
    assert "(ENOMEM)" in seen["reason"]
    assert f"{name} is {seen['limit_kib']} KiB" in seen["reason"]
    assert "MEMLOCK" not in seen["reason"]
    assert remedy in seen["remedy"]


@needs_ring
@pytest.mark.parametrize(("name", "field", "remedy"), LIMITS)
def test_who_demands_the_ring_has_it_without_room_for_the_program(
    name: str, field: str, remedy: str
) -> None:
    seen = under_a_limit(name, field, 8_000)
    assert (seen["auto"], seen["demanded"]) == ("epoll", "io_uring")


@needs_ring
@pytest.mark.parametrize(("name", "field", "remedy"), LIMITS)
def test_limit_with_room_for_ring_and_program_is_no_obstacle(
    name: str, field: str, remedy: str
) -> None:
    seen = under_a_limit(name, field, 32_000)
    assert (seen["auto"], seen["promised"], seen["reason"]) == ("io_uring", "io_uring", None)


COUNTED = """
import sys, sandbox, uring_trio
from uring_trio import _kernel, _shortage
sandbox.limit_memlock(int(sys.argv[1]) << 10)
limit = int(sys.argv[1]) << 10
# By hand: rings of 64 KiB, until there are more than the limit allows.
kept = []
try:
    for _ in range(limit // (64 << 10) + 2):
        kept.append(_kernel.Ring())
    by_hand = False
except OSError:
    by_hand = True
print(_shortage.counts_rings(), by_hand)
"""


@needs_ring
@pytest.mark.parametrize("kib", [64, 512])
def test_whether_the_kernel_counts_rings_is_tried_and_the_trial_is_right(kib: int) -> None:
    done = sandbox.run_python("NONE", COUNTED, str(kib))
    assert done.returncode == 0, done.stderr
    tried, by_hand = done.stdout.split()
    assert tried == by_hand


@needs_ring
def test_limit_that_is_larger_than_any_ring_cannot_be_tried_and_nothing_is_claimed() -> None:
    done = sandbox.run_python(
        "NONE",
        "import sandbox; from uring_trio import _shortage; sandbox.limit_memlock(8 << 20)\n"
        "print(_shortage.counts_rings()); print(_shortage.whose())",
    )
    assert done.returncode == 0, done.stderr
    counted, said = done.stdout.splitlines()
    assert counted == "None"
    assert "which of them is not known" in said
    assert "RLIMIT_MEMLOCK is 8192 KiB" in said


class Machine:
    """What is looked at and tried, as on some other machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch = monkeypatch
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        monkeypatch.setattr(_shortage, "PROC", self.proc)
        monkeypatch.setattr(_shortage, "CGROUPS", self.cgroups)
        self.write(self.proc / "thread-self" / "status", "CapEff:\t0000000000000000\n")
        self.write(self.proc / "self" / "uid_map", "         0          0 4294967295\n")
        self.limits(RLIMIT_MEMLOCK=64 << 10, RLIMIT_AS=-1, RLIMIT_DATA=-1)
        self.larger_ring_is(errno.ENOMEM)

    def limits(self, **limits: int) -> None:
        self.patch.setattr(_shortage, "soft_limit", lambda name: limits[name])

    def larger_ring_is(self, answer: int) -> None:
        self.patch.setattr(_kernel, "try_ring_alone", lambda *sizes: answer)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def explained() -> _remedies.Failure:
    return _remedies.explain(errno.ENOMEM, "io_uring_setup")


def test_locked_memory_is_the_cause_where_a_larger_ring_is_refused(machine: Machine) -> None:
    failure = explained()
    assert failure.cause == "RLIMIT_MEMLOCK"
    assert "RLIMIT_MEMLOCK is 64 KiB" in failure.reason
    assert "ulimit -l" in failure.remedy


@pytest.mark.parametrize("why", ["not counted", "CAP_IPC_LOCK", "unlimited"])
def test_locked_memory_is_not_the_cause_where_it_cannot_be(machine: Machine, why: str) -> None:
    if why == "not counted":
        machine.larger_ring_is(0)
    elif why == "CAP_IPC_LOCK":
        machine.write(machine.proc / "thread-self" / "status", "CapEff:\t0000000000004000\n")
    else:
        machine.limits(RLIMIT_MEMLOCK=-1, RLIMIT_AS=-1, RLIMIT_DATA=-1)
    failure = explained()
    assert failure.cause == "memory"
    assert "the kernel has no memory for a ring" in failure.reason
    assert "ulimit -l" not in failure.remedy


def test_capability_inside_a_user_namespace_frees_of_nothing(machine: Machine) -> None:
    machine.write(machine.proc / "thread-self" / "status", "CapEff:\t000001ffffffffff\n")
    machine.write(machine.proc / "self" / "uid_map", "         0       1000          1\n")
    assert _shortage.can_lock_all() is False
    assert explained().cause == "RLIMIT_MEMLOCK"


def test_without_proc_the_trial_still_tells(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shortage, "PROC", machine.proc / "nowhere")
    assert explained().cause == "RLIMIT_MEMLOCK"
    machine.larger_ring_is(0)
    failure = explained()
    assert failure.cause == "memory"
    assert "/proc cannot be read" in failure.reason


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/box", {"box/memory.max": "8388608", "box/memory.current": "8000000"}),
        ("0::/box/inner", {"box/memory.max": "8388608", "box/memory.current": "8000000"}),
        (
            "4:memory:/box",
            {
                "memory/box/memory.limit_in_bytes": "8388608",
                "memory/box/memory.usage_in_bytes": "8000000",
            },
        ),
    ],
)
def test_full_memory_cgroup_is_named(machine: Machine, line: str, files: dict[str, str]) -> None:
    machine.larger_ring_is(0)
    machine.write(machine.proc / "self" / "cgroup", line + "\n")
    assert explained().cause == "memory"
    for name, text in files.items():
        machine.write(machine.cgroups / name, text + "\n")
    failure = explained()
    assert failure.cause == "memory cgroup"
    assert "/box has used 7 of its 8 MiB" in failure.reason
    # What the kernel can take back at any time is room.
    cache = "total_cache" if "memory:" in line else "file"
    stat = next(machine.cgroups / name for name in files).with_name("memory.stat")
    machine.write(stat, f"anon 1000\n{cache} 6000000\n")
    assert explained().cause == "memory"


@needs_ring
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may lock more than its limit")
def test_report_complains_of_a_small_limit_only_where_it_holds() -> None:
    code = """
import resource, sys, sandbox, trio, uring_trio
if sys.argv[1] == "ordinary":
    sandbox.limit_memlock(64 << 10)
else:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
from uring_trio import _shortage
complaints = [p for p in uring_trio.probe().problems if "RLIMIT_MEMLOCK is 64 KiB" in p]
print(bool(complaints), _shortage.counts_rings())
"""
    for user in ("ordinary", "root"):
        done = sandbox.run_python("NONE", code, user)
        complains, counted = done.stdout.split()
        assert complains == counted, done.stderr
        assert user == "ordinary" or counted == "False"


def test_report_says_nothing_of_locked_memory_on_a_kernel_that_does_not_count(
    machine: Machine,
) -> None:
    machine.larger_ring_is(0)
    assert not any("MEMLOCK" in problem for problem in uring_trio.probe(refresh=True).problems)
