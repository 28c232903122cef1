"""The book of the kernel's workers: no operation of ours ends on a thread of io_uring's own.

What the kernel does
====================
An operation that io_uring neither finishes at once nor polls for goes to a thread that the
kernel adds to this process, and blocks there: one for a request that is marked so, for a file
without a poll function, and for one whose poll woke 128 times in vain. The threads belong to
the thread that made the ring, for all of its rings, and are called ``iou-wrk-TID`` after it.
One with nothing to do stays for 5 s, the last one for longer, also when the ring is closed.

What follows
============
- A run's workers are those that were not there when it began: counted at its end, before its
  ring is closed, they tell of every operation of the last 5 s. A run that is longer, hangs or
  is killed is looked at in between too, by the next tick after each `LOOK_AFTER_S`.
- A worker has its name only once it has run, but is marked as one (`PF_IO_WORKER`) from its
  birth: so the mark is what counts. One without its name yet is whoever's sees it.
- The number in the name is that of the first PID namespace. In another one it is no thread of
  ours, and then, too, it is whoever's sees it: a fault is told twice rather than not at all.
- Before a worker there are the kernel's own retries. What it would try again it names in the
  ring's fdinfo, so `retried()` tells of an operation that is left to it with no need to make
  128 wake-ups in vain; but only while it waits.
- What is found is written to a file, named by the environment, that the fixture of the test
  reads: so runs in any thread, in forked children and in other programs are in it as well.
  `child_processes/sitecustomize.py` brings this module into those.
"""

from __future__ import annotations

# A child that has become another user can perhaps import nothing that is not imported yet: here
# stands what the package itself needs, too.
import contextlib
import errno
import functools
import os
import re
import threading
from pathlib import Path
from time import monotonic
from typing import Any

BOOK = "URING_TRIO_TESTS_KERNEL_WORKERS"  # in the environment: the file
TASKS = "/proc/self/task"
CHILD_PROCESSES = str(Path(__file__).parent / "child_processes")

PF_IO_WORKER = 0x10  # <linux/sched.h>
# No operation of ours is left to the kernel for longer than this without having its look.
LOOK_AFTER_S = 0.05
# `st_nlink` of a folder counts "." and its name as well; one thread is this one.
LINKS_OF_ONE_THREAD = 3


def workers() -> dict[int, int | None]:
    """The kernel's workers in this process: of which thread each is, None if not yet named.

    Raises:
      OSError: EMFILE, ENFILE: there is no descriptor to look with.
    """
    try:
        if os.stat(TASKS).st_nlink == LINKS_OF_ONE_THREAD:
            return {}
        tasks = {int(name) for name in os.listdir(TASKS)}
    except FileNotFoundError:  # there is no /proc here
        return {}
    found: dict[int, int | None] = {}
    # What Python has started is no worker, and need not be read.
    for task in tasks - {thread.native_id for thread in threading.enumerate()}:
        try:
            stat = Path(f"{TASKS}/{task}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        name, _, fields = stat.partition("(")[2].rpartition(")")
        if int(fields.split()[6]) & PF_IO_WORKER and not name.startswith("iou-sqp"):
            owner = name.partition("iou-wrk-")[2]
            found[task] = int(owner) if owner and int(owner) in tasks else None
    return found


# <linux/io_uring.h>. A TCP connect wakes when it is over, and for nothing else: before that
# there is nothing on its socket that anybody could have queued.
POLL_ADD, CONNECT = 6, 16


def retried() -> list[int]:
    """The opcodes of what the kernel itself would try again for this process's rings.

    It keeps them on a list, beside the polls that were asked for. Connects are left out.
    """
    opcodes: list[int] = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "io_uring" in os.readlink(f"/proc/self/fd/{fd}"):
                kept = Path(f"/proc/self/fdinfo/{fd}").read_text()
                opcodes += [int(opcode) for opcode in re.findall(r"op=(\d+), task_works", kept)]
    return [opcode for opcode in opcodes if opcode not in (POLL_ADD, CONNECT)]


class Watch:
    """Watches one run, from the thread that makes its ring."""

    def __init__(self) -> None:
        self.thread = threading.current_thread().name
        self.ident = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.earlier: dict[int, int | None] = {}
        self.told = 0
        self.next_look = monotonic() + LOOK_AFTER_S
        with contextlib.suppress(OSError):  # no descriptor, so no ring either
            self.earlier = workers()

    def look(self, manager: Any, when: str) -> None:
        """Write down the workers that are this run's, if they are more than before."""
        self.next_look = monotonic() + LOOK_AFTER_S
        owners = (self.native_id, None)
        mine = [
            task
            for task, owner in workers().items()
            if task not in self.earlier and owner in owners
        ]
        if len(mine) > self.told:
            self.told = len(mine)
            write(
                f"{len(mine)} of the kernel's workers (iou-wrk) {when} in the run of thread "
                f"{self.thread} ({self.native_id}) of process {os.getpid()}, "
                f"after the operations {manager.ring.statistics()[1]}"
            )

    def look_if_possible(self, manager: Any, when: str) -> None:
        """The same, but a process that has no descriptor to spare is looked at later."""
        try:
            self.look(manager, when)
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE):
                raise


def write(line: str) -> None:
    """A line of the book."""
    file = os.open(os.environ[BOOK], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def watch_runs(manager_class: Any) -> None:
    """Have every run on the ring watched, in this process and in what is forked from it."""
    make, get_events, close = (
        manager_class.__init__,
        manager_class.get_events,
        manager_class.close,
    )
    if hasattr(get_events, "__wrapped__"):
        return  # by sitecustomize, in a pytest that a test has started

    @functools.wraps(make)
    def watched_init(self: Any, *args: Any, **kwargs: Any) -> None:
        self._watch = Watch()
        make(self, *args, **kwargs)

    @functools.wraps(get_events)
    def watched_get_events(self: Any, timeout: float) -> Any:
        events = get_events(self, timeout)
        watch = self._watch
        # Not in a guest's helper thread: the ring may be closed while it wakes up.
        if monotonic() >= watch.next_look and threading.get_ident() == watch.ident:
            watch.look_if_possible(self, "while it ran")
        return events

    @functools.wraps(close)
    def watched_close(self: Any) -> None:
        if not self.closed:
            self._watch.look(self, "at its end")
        close(self)

    manager_class.__init__ = watched_init
    manager_class.get_events = watched_get_events
    manager_class.close = watched_close


# ---- the side of pytest -------------------------------------------------------------------


class Book:
    """The file, and the environment that leads child processes to it."""

    def __init__(self) -> None:
        import tempfile

        self._folder = tempfile.mkdtemp(prefix="kernel-workers-")
        os.chmod(self._folder, 0o755)
        self.path = Path(self._folder, "book")
        self.path.touch()
        self._told = 0
        self.path.chmod(0o666)  # some tests have their children become another user
        self._environment = {name: os.environ.get(name) for name in (BOOK, "PYTHONPATH")}
        os.environ[BOOK] = str(self.path)
        inherited = os.environ.get("PYTHONPATH")
        folders = [CHILD_PROCESSES, *([inherited] if inherited else [])]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)

    def close(self) -> None:
        """Put the environment back."""
        import shutil

        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self._folder)

    def news(self) -> list[str]:
        """What was written since the last call, a line for each find."""
        if self.path.stat().st_size == self._told:
            return []
        with self.path.open() as file:
            file.seek(self._told)
            lines = file.read().splitlines()
            self._told = file.tell()
        return [line.replace(f"process {os.getpid()}", "this process") for line in lines]
