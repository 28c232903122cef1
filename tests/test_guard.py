"""The guard finds what it should: faults that are planted, and what of them is seen without it.

The guard is csrc/tests/guard.c, a variant of the extension (`builds`). A fault is planted in a
copy of the tree, and tests that pass without it are run there: on the guard, where one must fail
or crash, and on the same engine without a guard. What is missed there is what the guard is for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import builds
import machine_speed
import mutations
import pytest
import sandbox
from marks import needs_ring
from mutants import edit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_ring

LIMIT_S = 100 * machine_speed.slowness()  # of a run of pytest, and what it builds


# ---- the guard by itself ------------------------------------------------------------------


BEGIN = """
import errno, socket
from uring_trio import _kernel, _memory
import guarded

_kernel.LONG_TICK_NS = 0  # each slot without a mark
ring = _kernel.Ring()
a, b = socket.socketpair()

def answer(slot):
    while not ring.wait(10**9) & _kernel.RECORDS_MASK:
        pass
    found = [record[1] for record in ring.records(1) if record[0] == slot]
    assert len(found) == 1
    return found[0]
"""

# The same on the simulated kernel: all that follows is on it.
SIMULATED = """
import simulation
kernel = simulation.simulated()
kernel.__enter__()
"""

SOUND = """
memory = _memory.Memory(100)
slot = ring.recv_into(b.fileno(), memory.c, 100, 0, 0)
a.send(b"x" * 10)
assert answer(slot) == 10
assert memory.data(10) == b"x" * 10
memory.free()

slot = ring.recv(b.fileno(), 0, 100, 0)
a.send(b"y" * 10)
assert answer(slot) == 10
assert ring.pool[:10] == b"y" * 10

pinned = _memory.pin(bytearray(b"z" * 10))
slot = ring.send(a.fileno(), pinned, 10, 0)
assert answer(slot) == 10
_memory.unpin(pinned)
assert b.recv(100) == b"z" * 10
assert guarded.counts() == (3, 1, 0), guarded.counts()

# Several send from one: of what another keeps, or has pinned, letting go is no giving up.
data = bytes(range(200))
a.setblocking(False)
try:
    while True:
        a.send(bytes(4096))
except BlockingIOError:
    pass
pins = [_memory.pin(memoryview(data)[start:]) for start in (10, 20, 20)]
assert ring.send(a.fileno(), data, 200, 0) > 0
assert ring.send(a.fileno(), pins[1], 180, 0) > 0
ring.wait(0)
_memory.unpin(pins[0])
_memory.unpin(pins[2])
assert guarded.counts() == (5, 1, 0), guarded.counts()
b.close()
for _ in range(2):
    ring.wait(10**9)
"""

FREED = """
memory = _memory.Memory(100)
slot = ring.recv_into(b.fileno(), memory.c, 100, 0, 0)
memory.free()
a.send(b"x" * 10)
assert answer(slot) == -errno.EFAULT
"""

UNPINNED = """
pinned = _memory.pin(bytearray(100), writable=True)
slot = ring.recv_into(b.fileno(), pinned, 100, 0, 0)
ring.wait(0)
_memory.unpin(pinned)
"""

# That another pins a part of it does not keep the rest.
UNPINNED_IN_PART = """
data = bytearray(100)
pinned, other = _memory.pin(data, writable=True), _memory.pin(memoryview(data)[50:])
slot = ring.recv_into(b.fileno(), pinned, 100, 0, 0)
ring.wait(0)
_memory.unpin(pinned)
"""

NEVER_PINNED = """
import ctypes
ffi, _ = _kernel.load_extension()
memory = ctypes.create_string_buffer(100)
slot = ring.recv_into(b.fileno(), ffi.cast("char *", ctypes.addressof(memory)), 100, 0, 0)
a.send(b"x" * 10)
assert answer(slot) == 10
"""

CHANGED = """
import ctypes
data = bytes(100)
slot = ring.send(a.fileno(), data, 100, 0)
ctypes.memset(id(data) + bytes.__basicsize__ - 1, 0xdd, 100)
assert answer(slot) == 100
"""

TWICE = """
memory = _memory.Memory(100)
ffi, lib = _kernel.load_extension()
lib.ut_memory_free(memory.c)
lib.ut_memory_free(memory.c)
"""

# Read where a process of its own can die of it.
READ_LATE = """
slot = ring.recv(b.fileno(), 0, 100, 0)
a.send(b"y" * 10)
assert answer(slot) == 10
ring.wait(0)
ring.recv(b.fileno(), 0, 100, 0)
ring.wait(0)
print("reads", flush=True)
ring.pool[:10]
print("has read")
"""


def run(program: str, folder: Path, before: str = "") -> tuple[int, str, list[str]]:
    """Its status, what it printed, and what the guard had to say."""
    environment = builds.environment("guard", reports=folder)
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    ended = subprocess.run(
        builds.command("guard", ["-c", before + BEGIN + program]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=sandbox.CHILD_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode <= 0, ended.stderr
    return ended.returncode, ended.stdout, builds.Reports(folder).news()


def test_it_finds_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert run(SOUND, tmp_path) == (0, "", [])


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (FREED, ["freed before the last cqe of a recv", "begins on memory", "-EFAULT"]),
        (UNPINNED, ["unpinned before the last cqe of a recv"]),
        (UNPINNED_IN_PART, ["unpinned before the last cqe of a recv"]),
        (NEVER_PINNED, ["goes into memory that is not pinned"]),
        (CHANGED, ["has changed meanwhile"]),
        (TWICE, ["freed twice"]),
    ],
    ids=["freed", "unpinned", "unpinned in part", "never pinned", "changed", "freed twice"],
)
def test_it_tells_of_memory_that_is_given_up_too_early(
    program: str, told: list[str], tmp_path: Path
) -> None:
    status, _, found = run(program, tmp_path)
    assert status == 0
    assert len(found) == len(told)
    for line, words in zip(found, told, strict=True):
        assert words in line


def test_it_stands_before_the_simulated_kernel_too(tmp_path: Path) -> None:
    told = ["freed before the last cqe of a recv", "begins on memory", "-EFAULT"]
    status, _, found = run(FREED, tmp_path, before=SIMULATED)
    assert status == 0
    assert [words in line for words, line in zip(told, found, strict=True)] == [True] * 3


def test_a_buffer_that_went_home_cannot_be_read(tmp_path: Path) -> None:
    status, printed, found = run(READ_LATE, tmp_path)
    assert (status, printed, found) == (-11, "reads\n", [])


# ---- planted faults -----------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A way to break the rule of whose memory it is, and tests that then use it.

    Attributes:
      name: what is wrong.
      edits: file, text that stands there once, and what to have instead.
      tests: as pytest names them.
      told: what the guard says of it, or a signal's name if a process dies of it there.
      seen_without: they fail without a guard as well.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]
    told: str
    seen_without: bool = False

    def plant(self, tree: Path) -> None:
        """Make it in a copy of the project."""
        for each in self.edits:
            edit(tree, *each)


GIVEN = "tests/test_given_memory.py"
OPERATIONS = "src/uring_trio/_operations.py"
SOCKET_OPERATIONS = "src/uring_trio/_socket_operations.py"
MEMORY = "src/uring_trio/_memory.py"
ENGINE = "csrc/engine.c"
TURN = "src/uring_trio/gain/_turn.py"

KEPT = "        inbound.stash()\n        inbound.judge()\n        if inbound.state"

LEASED = "(uint16_t)(flags >> IORING_CQE_BUFFER_SHIFT));\n    }\n}\n\nstatic void finish("
RETURNED_AT_ONCE = """(uint16_t)(flags >> IORING_CQE_BUFFER_SHIFT));
        ut_bufring_return(&engine->groups[op->sqe.buf_group], record->offset);
        ut_bufring_commit(&engine->groups[op->sqe.buf_group]);
    }
}

static void finish("""
RETURNED = "            ut_bufring_return(&engine->groups[group], record->offset);\n"

# With the last cqe.
FREED_AGAIN = (
    MEMORY,
    '        """Give the memory back, and the pins; after the last cqe."""\n',
    "        if self.c is None:\n            return\n",
)
ASKED_FOR_ITS_END = """
        self.raise_cancel = raise_cancel
        slots.submit_for_helper()
"""
RELEASED_BY_A_CANCEL = (
    (OPERATIONS, ASKED_FOR_ITS_END, f"\n        self.release(){ASKED_FOR_ITS_END}"),
    FREED_AGAIN,
    (
        MEMORY,
        "        _lib.ut_memory_free(self.c)",
        "        self.c and _lib.ut_memory_free(self.c)",
    ),
)
CANCELLED = f"{GIVEN}::test_a_cancelled_receive_has_its_memory_until_it_ends"

RECEIVE_INTO = "return int(receive(line.fileno(), self.pinned, self.size, self.flags, poll_first))"
UNPINNED_AT_ONCE = """slot = receive(line.fileno(), self.pinned, self.size, self.flags, poll_first)
        unpin(self.pinned)
        return int(slot)"""

CONNECTS = "        return line.slots.ring.connect(line.fileno(), self.message)\n"
FREES_AT_ONCE = """        slot = line.slots.ring.connect(line.fileno(), self.message)
        self.message.free()
        return slot
"""

SENDS = "        return int(line.prep_send(line.fileno(), pinned, size, self.flags))\n"
# Of a `bytes`, or of what is pinned, byte by byte.
SENDS_A_COPY = """        whole = isinstance(pinned, bytes)
        pinned = b"".join(pinned[at : at + 1] if whole else pinned[at] for at in range(size))
"""

FAULTS = [
    Fault(
        "a buffer goes home with its cqe, and not with its batch",
        ((ENGINE, LEASED, RETURNED_AT_ONCE), (ENGINE, RETURNED, "")),
        (f"{GIVEN}::test_many_connections_of_a_server_have_input_at_once",),
        "Segmentation fault",
    ),
    Fault(
        "input that its handler has left is read when its buffer has gone home",
        ((TURN, KEPT, "        inbound.judge()\n        if inbound.state"),),
        (f"{GIVEN}::test_input_that_a_handler_leaves_is_there_later",),
        "Segmentation fault",
    ),
    Fault(
        "a cancel gives a message back",
        RELEASED_BY_A_CANCEL,
        (f"{CANCELLED}[io_uring-receive_message]",),
        "freed before the last cqe of a recvmsg",
    ),
    Fault(
        "a cancel gives memory of our own back",
        RELEASED_BY_A_CANCEL,
        (f"{CANCELLED}[io_uring-receive_datagram]",),
        "freed before the last cqe of a recv",
    ),
    Fault(
        "a cancel gives a user's memory back",
        RELEASED_BY_A_CANCEL,
        (f"{CANCELLED}[io_uring-receive_into]",),
        "unpinned before the last cqe of a recv",
    ),
    Fault(
        "a user's memory is pinned until the operation begins",
        ((OPERATIONS, RECEIVE_INTO, UNPINNED_AT_ONCE),),
        (f"{CANCELLED}[io_uring-receive_into]",),
        "unpinned before the last cqe of a recv",
    ),
    Fault(
        "a message is freed as soon as it was prepared",
        ((SOCKET_OPERATIONS, CONNECTS, FREES_AT_ONCE), FREED_AGAIN),
        (f"{GIVEN}::test_a_connect_has_its_address_until_it_ends",),
        "freed before the last cqe of a connect",
    ),
    Fault(
        "what is sent is nobody's",
        ((OPERATIONS, SENDS, f"{SENDS_A_COPY}{SENDS}"),),
        (f"{GIVEN}::test_what_is_sent_stays_what_it_was",),
        "Segmentation fault",
        seen_without=True,
    ),
]


@pytest.fixture
def tree() -> Iterator[Path]:
    """A copy of the project, in which all tests pass."""
    with mutations.copy_of(mutations.ROOT) as copy:
        yield copy


def run_tests(tree: Path, variant: str, tests: tuple[str, ...]) -> tuple[int, str]:
    """Their status, in a tree and on a variant, and what was said."""
    command = [sys.executable, "tests/builds.py", variant, "-m", "pytest", "-q", "-x", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-m", "not long"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    print(ended.stdout[-5000:], ended.stderr[-5000:])
    assert "no tests ran" not in ended.stdout
    assert "cannot be" not in ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.timeout(3 * LIMIT_S)
def test_the_guard_finds_planted_faults(fault: Fault, tree: Path) -> None:
    fault.plant(tree)
    status, said = run_tests(tree, "guard", fault.tests)
    assert status
    assert fault.told in said
    status, _ = run_tests(tree, "plain", fault.tests)
    assert (status != 0) is fault.seen_without


@pytest.mark.long
@pytest.mark.timeout(3 * LIMIT_S)
def test_without_a_fault_it_finds_none(tree: Path) -> None:
    status, _ = run_tests(tree, "guard", tuple({test for fault in FAULTS for test in fault.tests}))
    assert status == 0
