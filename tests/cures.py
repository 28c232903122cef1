"""The cures for what peers, other processes and the kernel by itself have done to this project.

Each says what is so with it, and how it is taken out, alone: `taken_out.py` does that, and has
the generators look for what is wrong then. None of them knows a fault by name, so what they
find again they would have found before there was a cure. (`mutants.py` has rules with the
tests that know them; where one of those is a cure it is named here by its rule.)

A cure is taken out by lines that are as they were before it, or as they would be if nobody had
thought of it; some need more than one. No taking-out has another one in it: what is found then
would be found for the other's sake.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mutants import MUTATIONS, edit

if TYPE_CHECKING:
    from pathlib import Path


class Edit(NamedTuple):
    """What stands in a file once, and what stands there without the cure."""

    path: str
    text: str
    instead: str


@dataclass(frozen=True)
class Cure:
    """What holds because of it, and how it is taken out.

    Attributes:
      rule: what is so with it.
      edits: what takes it out.
      doors: through which a program meets it: a generator's name ends with its door.
      first: which generators look first: those on the simulated kernel ("sim"), or "ring".
      reason: why no generator can find it here, if that is so: another kernel is needed, or
        something else holds without it.
    """

    rule: str
    edits: tuple[Edit, ...]
    doors: tuple[str, ...] = ("trio", "anyio", "gain")
    first: str = "ring"
    reason: str = ""

    def meets(self, generator: str) -> bool:
        return generator.rpartition("-")[2] in self.doors

    def order(self, generator: str) -> tuple[bool, int]:
        """Sorts generators: those that find most of its kind before others, trio's before anyio's."""
        kind, _, door = generator.partition("-")
        return kind != self.first, ("trio", "gain", "anyio").index(door)

    @property
    def is_c(self) -> bool:
        return any(each.path.endswith(".c") for each in self.edits)

    def take_out(self, tree: Path) -> None:
        """Of a copy of the project.

        Raises:
          LookupError: a text is not there, or more than once.
        """
        for each in self.edits:
            edit(tree, *each)


def known(rule: str) -> Cure:
    """A rule of `mutants.py`."""
    (found,) = [mutation for mutation in MUTATIONS if mutation.rule == rule]
    return Cure(rule, (Edit(found.path, found.text, found.instead),))


PREP = "csrc/prep.c"
ENGINE = "csrc/engine.c"
LADDER = "csrc/ladder.c"
SOCKETS = "src/uring_trio/_sockets.py"
OPERATIONS = "src/uring_trio/_socket_operations.py"
LINES = "src/uring_trio/_lines.py"
CONNECTION = "src/uring_trio/gain/_connection.py"
ACCEPT = "src/uring_trio/gain/_accept.py"

WITH_FLAGS = "        sqe->op_flags = (uint32_t)flags | MSG_DONTWAIT;\n"
WITHOUT_FLAG = "        sqe->op_flags = (uint32_t)flags;\n"

# An accept that waits in the kernel, as before, is not cancelled as one that must not wait.
ACCEPTS_WAIT = Edit(
    ENGINE,
    "    return op->sqe.opcode == IORING_OP_ACCEPT && !(op->sqe.ioprio & IORING_ACCEPT_DONTWAIT) &&",
    "    return op->sqe.opcode == IORING_OP_NOP && !(op->sqe.ioprio & IORING_ACCEPT_DONTWAIT) &&",
)


def may_wait(what: str, before: str) -> Cure:
    """An attempt of an operation may wait in the kernel, as io_uring has it."""
    return Cure(
        f"{what} never waits in the kernel, which would try it again and then give it a thread.",
        (Edit(PREP, f"{before}{WITH_FLAGS}", f"{before}{WITHOUT_FLAG}"),),
    )


ATTEMPTS = [
    known("A receive never waits in the kernel: it says MSG_DONTWAIT."),
    may_wait(
        "A receive into the user's memory",
        "IORING_OP_RECV, fd, memory, size, POLLIN, poll_first);\n    if (slot >= 0)\n",
    ),
    may_wait("recvmsg", "                            poll_first);\n    if (slot >= 0)\n"),
    may_wait("A send", "IORING_OP_SEND, fd, data, size, POLLOUT, 0);\n    if (slot >= 0)\n"),
    may_wait(
        "sendmsg",
        "IORING_OP_SENDMSG, fd, &message->header, 1, POLLOUT, 0);\n    if (slot >= 0)\n",
    ),
    Cure(
        "A read of a pipe never waits in the kernel.",
        (
            Edit(
                PREP,
                "        sqe->op_flags = UT_RWF_NOWAIT;\n        sqe->flags",
                "        sqe->flags",
            ),
        ),
    ),
    Cure(
        "A write to a pipe never waits in the kernel.",
        (
            Edit(
                PREP,
                "        sqe->op_flags = UT_RWF_NOWAIT;\n        sqe->off",
                "        sqe->off",
            ),
        ),
    ),
    Cure(
        "A file that cannot be told not to wait is polled for, and read or written by hand.",
        (
            Edit(
                ENGINE,
                "    return is_file && res == -EOPNOTSUPP ? -EAGAIN : res;",
                "    return is_file && res == -EOPNOTSUPP && op->is_clock ? -EAGAIN : res;",
            ),
        ),
    ),
    Cure(
        "A send that finds its socket connecting (TCP_FASTOPEN_CONNECT) waits.",
        (
            Edit(
                ENGINE,
                "    return res == -EAGAIN || res == -EINPROGRESS || res == -EALREADY;",
                "    return res == -EAGAIN;",
            ),
        ),
    ),
]

WAITS = [
    known("After a poll that told the truth an attempt follows: ready is not the same as done."),
    known("A watch is not armed again because of its own cqe: that might be a spin."),
    known("A watch is armed once, and not beside one that is armed."),
    known("A watch is cancelled when its operation has its answer."),
    known("A pause doubles with each attempt in vain."),
    known("The echo of an attempt in vain cuts no pause: a change while the pause is young."),
    Cure(
        "A refusal after news is looked at before anybody pauses: rubbish delays nobody.",
        (
            Edit(
                LADDER,
                "    [UT_STEP_TRY_NEWS]        = {UT_STEP_GLANCE,  ",
                "    [UT_STEP_TRY_NEWS]        = {UT_STEP_PAUSE,   ",
            ),
            Edit(
                LADDER,
                "    [UT_STEP_TRY_NEWS_AGAIN]  = {UT_STEP_GLANCE_AGAIN,  ",
                "    [UT_STEP_TRY_NEWS_AGAIN]  = {UT_STEP_PAUSE_AGAIN,   ",
            ),
        ),
    ),
    Cure(
        "A change cuts a pause short, once it is no echo.",
        (
            Edit(
                LADDER,
                "    [UT_STEP_PAUSE]           = {NO,                      NO,                      "
                "NO,                      NO,                      NO,                      "
                "UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,  ",
                "    [UT_STEP_PAUSE]           = {NO,                      NO,                      "
                "NO,                      NO,                      NO,                      "
                "UT_STEP_PAUSE,           UT_STEP_PAUSE,           UT_STEP_PAUSE,      ",
            ),
            Edit(
                LADDER,
                "    [UT_STEP_PAUSE_AGAIN]     = {NO,                      NO,                      "
                "NO,                      NO,                      NO,                      "
                "UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,  ",
                "    [UT_STEP_PAUSE_AGAIN]     = {NO,                      NO,                      "
                "NO,                      NO,                      NO,                      "
                "UT_STEP_PAUSE_AGAIN,     UT_STEP_PAUSE_AGAIN,     UT_STEP_PAUSE_AGAIN,",
            ),
        ),
    ),
    Cure(
        "A pause that is cut before the kernel knows of it keeps its one entry in the queue.",
        (
            Edit(
                ENGINE,
                "        if (op->main == UT_REQUEST_QUEUED) {\n            /* The kernel",
                "        if (op->main == UT_REQUEST_QUEUED && op->is_clock) {\n"
                "            /* The kernel",
            ),
        ),
    ),
    Cure(
        "Those whom one full UNIX receiver refuses share one clock.",
        (
            Edit(
                ENGINE,
                "    if (!may_line || !enter_line(engine, op)) {",
                "    if (!may_line || (void *)op != NULL || !enter_line(engine, op)) {",
            ),
        ),
    ),
    known("A line's clock runs from the first who is parked in it."),
    known("Who has its answer gives two others of its line a turn."),
    known("A lost cqe (-EBADR) is told by the next wait, though other cqes came with the error."),
]

# Of what there is in one turn, or in none, whatever comes first.
TURNS = [
    known("What a wait ends with lets go of files: watches that linger are cancelled at once."),
    Cure(
        "Who is ready and refused pauses and looks: no change need tell of room.",
        (
            # ... by itself: whoever stands in a line has the line's clock, which is another cure.
            Edit(
                LADDER,
                "    [UT_STEP_TRY_TOLD]        = {UT_STEP_PAUSE,           UT_STEP_LINE, ",
                "    [UT_STEP_TRY_TOLD]        = {UT_STEP_WATCH,           UT_STEP_LINE, ",
            ),
        ),
        # Without a line only a look ahead is refused so, and only trio's sockets have flags.
        doors=("trio",),
    ),
]

CONNECTIONS = [
    Cure(
        "accept does not wait exclusively: whoever does not take a connection swallows nothing.",
        (
            ACCEPTS_WAIT,
            Edit(
                PREP,
                "        sqe->op_flags = (uint32_t)flags;\n"
                "        sqe->ioprio = engine->accept_waits ? 0 : IORING_ACCEPT_DONTWAIT;",
                "        sqe->op_flags = (uint32_t)flags;\n        sqe->ioprio = 0;",
            ),
            Edit(
                OPERATIONS,
                "        self.kind = kind\n        self.on_ring = on_ring\n",
                "        self.kind = kind\n        self.on_ring = True\n",
            ),
        ),
    ),
    Cure(
        "An accept whose connection another process has taken goes on.",
        (
            Edit(
                OPERATIONS,
                "            if res == EAGAIN:\n                self.on_ring = True\n",
                "            if res == EAGAIN and self.might_block:\n"
                "                self.on_ring = True\n",
            ),
        ),
    ),
    known("A listener that was seen blocking is not trusted again."),
    Cure(
        "accept where nobody listens fails at once.",
        (Edit(SOCKETS, "            if not _listens(sock):", "            if sock is None:"),),
    ),
    Cure(
        "connect of a UNIX socket never waits in the kernel.",
        (
            Edit(
                SOCKETS,
                "            if self._sock.family == socket.AF_UNIX:",
                "            if self._sock.family is None:",
            ),
        ),
    ),
    known("Who cancels the clock of a full UNIX listener hands it on to another who waits."),
    Cure(
        "A connect that somebody has begun before us is waited for.",
        (
            Edit(
                SOCKETS,
                "            except BlockingIOError:  # EALREADY",
                "            except ZeroDivisionError:  # EALREADY",
            ),
        ),
    ),
]

FILES = [
    Cure(
        "A file that is no socket and no pipe is waited for if the kernel can, whatever its type.",
        (
            Edit(
                "src/uring_trio/_polls.py",
                "            return fd\n    select.poll()",
                "            return fd\n        if stat.S_ISREG(mode):\n"
                "            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))\n"
                "    select.poll()",
            ),
        ),
    ),
    known("What was there and is gone when its task would be woken is not told."),
    known("A poll that nobody waits for is taken out of the kernel at once: it holds its file."),
    known("A poll that waits on after it was told is armed for what changes, or it would spin."),
    known("POLLRDHUP alone does not make a full socket writable."),
    Cure(
        "A socket with a low-water mark is tried before it is polled.",
        (
            Edit(
                LINES,
                "        return self.poll_first and not self._sees_low_water()",
                "        return self.poll_first",
            ),
            Edit(
                LINES,
                "partial(_try_at_once, plain) if self._sees_low_water() else plain",
                "plain",
            ),
        ),
    ),
    known("Who sets SO_RCVLOWAT has all receivers look at it again."),
    known("A message of a socket that has messages is never cut to our buffer."),
    known("A FIFO that was opened for the other way alone is not waited for."),
    Cure(
        "What is in flight on a socket ends in every run that holds it.",
        (
            Edit(
                "src/uring_trio/_io_manager.py",
                "        if manager is not None and manager is not here:\n",
                "        if manager is not None and manager is not here and (\n"
                '            manager is getattr(getattr(run_context, "runner", None), '
                '"io_manager", None)\n'
                "        ):\n",
            ),
        ),
    ),
    known("detach() gives EBADF to who waits, and ClosedResourceError to nobody: it is open."),
    known("Leaving `with` lets go of the file, though stock closes it without a word."),
    known("Two trio sockets around one open file stand in one line."),
]

GUESTS = [
    known("A registration of the eventfd is good for one signal: after one it is made anew."),
    known("A helper thread sees the eventfds that tasks wait for with its own eyes."),
    known("The host's cancels wake its helper thread, which would sleep on."),
]

SERVERS = [
    Cure(
        "A callback server's accept does not wait exclusively.",
        (
            ACCEPTS_WAIT,
            Edit(
                PREP,
                "        sqe->ioprio = engine->accept_waits ? 0 : IORING_ACCEPT_DONTWAIT;\n"
                "        sqe->op_flags = (uint32_t)flags;",
                "        sqe->ioprio = 0;\n        sqe->op_flags = (uint32_t)flags;",
            ),
            Edit(
                ACCEPT,
                "        if self.admission.is_free():\n"
                "            self._start(self.worker.slots.ring.poll(self._fd, POLLIN, 0), "
                "on_ring=False)",
                "        if self.admission.claim():\n"
                "            ring = self.worker.slots.ring\n"
                "            self._start(ring.accept_fd(self._fd, ACCEPT_FLAGS), on_ring=True)",
            ),
        ),
    ),
    Cure(
        "A listener that tells of a connection which is never there is left alone for a while.",
        (
            Edit(
                ACCEPT,
                "        elif res == EAGAIN and self._in_vain >= IN_VAIN_MAX:",
                "        elif res == EAGAIN and self._in_vain < 0:",
            ),
        ),
    ),
    known("A poll that has told of what stays set is armed for what changes."),
    known("Receiving stops where as much is there as the limit allows."),
    Cure(
        "Input is bounded for every way of looking at it.",
        (
            Edit(
                CONNECTION,
                "            inbound.stash()\n        inbound.judge()\n        if inbound.pieces:\n",
                "            inbound.stash()\n            inbound.judge()\n"
                "        if inbound.pieces:\n",
            ),
            Edit(
                CONNECTION,
                "            inbound.judge()  # now: a callback that runs elsewhere leaves no",
                "            pass  # now: a callback that runs elsewhere leaves no",
            ),
        ),
    ),
    Cure(
        "Input that nobody will ever take ends its connection.",
        (
            Edit(
                "src/uring_trio/gain/_patience.py",
                "        if not is_stuck(connection):\n",
                "        if connection is not None:\n",
            ),
        ),
    ),
    Cure(
        "What came before a reset is input, whatever finds out about the reset.",
        (
            Edit(
                CONNECTION,
                "            return  # close_notify came before, and an unread ticket makes of a "
                "FIN a reset\n        self._connection.lose(os_error(res))",
                "            return  # close_notify came before, and an unread ticket makes of a "
                "FIN a reset\n        self._connection.fail(os_error(res))",
            ),
        ),
    ),
    Cure(
        "A multishot receive is tried at once, or it never learns of an end behind data.",
        (
            Edit(
                "src/uring_trio/gain/_ring.py",
                "            slot = ring.recv_multishot(self.fd, 0, 0)\n",
                "            slot = ring.recv_multishot(self.fd, 0, 1)\n",
            ),
        ),
    ),
    Cure(
        "A reset behind data is tried before multishot receives are used.",
        (
            Edit(
                "src/uring_trio/gain/_capabilities.py",
                "    _try_reset_before,\n    _try_reset_after,\n)",
                ")",
            ),
        ),
        # ... and there, too, the poll for errors finds the reset, and what is left is read then.
        reason="only Linux 6.16 has that fault: `make kernels`",
    ),
    known("That no buffer was left for a receive is no error: it is armed again."),
    known("An error of one peer's does not lose another's datagram."),
    known("A datagram that waits keeps its place: none overtakes it."),
    Cure(
        "A datagram socket never waits in a call, though another process has set it to block.",
        (
            Edit(
                "csrc/beside.c",
                "recvfrom(fd, memory, size, flags | MSG_DONTWAIT, room,",
                "recvfrom(fd, memory, size, flags, room,",
            ),
        ),
    ),
]


def of(doors: tuple[str, ...], cures: list[Cure]) -> list[Cure]:
    return [dataclasses.replace(cure, doors=doors) for cure in cures]


CURES = [
    *ATTEMPTS,
    # Of an order of events, which only the simulation has on demand.
    *[dataclasses.replace(cure, first="sim") for cure in WAITS],
    *TURNS,
    *of(("trio", "anyio"), [*CONNECTIONS, *FILES, *GUESTS]),
    *of(("gain",), SERVERS),
]
