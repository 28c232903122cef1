"""Every private part of trio that this package rests on, by name, in one place.

Each was compared at every release from 0.28.0 to 0.35.0; a release that lacks one of
them is unknown to us, and its runs stay on trio's own manager (see `missing_names`).

| name | what we do with it |
|---|---|
| ``_core._run.TheIOManager`` | rebind it: what every later run is made with |
| ``_core._run.GLOBAL_RUN_CONTEXT`` | read ``.runner`` and ``.task`` of this thread |
| ``Runner.io_manager, runq, instruments, is_guest, force_guest_tick_asap`` | swap, wake tasks |
| ``_core._run.Instruments`` | subclass it (`_instruments`) |
| ``Runner.clock`` | put one there that refuses to start, before the run does |
| ``Task._runner, _next_send_fn, _next_send, _abort_func, custom_sleep_data, coro`` | wake a task |
| ``_core._traps.WaitTaskRescheduled`` | yield a prebuilt one: a task sleeps |
| ``_socket._SocketType`` | rebind it, subclass it; ``._sock``, ``._resolve_address_nocp``, ``._did_shutdown_SHUT_WR`` |
| ``SocketStream``, ``FdStream`` | replace methods; their conflict detectors (``_held``) and fd holder |
| ``Runner.entry_queue``, ``.wakeup``, ``.lock`` | ring another bell than its socket pair (`Wakeup`) |
| ``FdStream`` | two attributes of ours, ``_uring_endpoint``, ``_uring_bytes`` |

Waking a task the documented way, ``reschedule(task, outcome.Value(x))``, costs 3.4 us;
setting the four fields that it sets costs 1.3 (one attrs object, one call and three
asserts less). That is done here and nowhere else.
"""

from __future__ import annotations

import socket
import sys
import types
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import trio
from trio import _socket, _util
from trio._core import _run, _traps

from uring_trio import _hot_parts
from uring_trio._fast_ways import FAST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

try:
    from trio import _unix_pipes
except ImportError:  # Windows
    _unix_pipes = None  # type: ignore[assignment]

# Taken here, at import: what "stock" means, whatever is rebound later. None where this
# trio lacks the name.
stock_io_manager: Any = getattr(_run, "TheIOManager", None)
stock_socket_type: Any = getattr(_socket, "_SocketType", trio.socket.SocketType)
fd_stream_type: Any = getattr(_unix_pipes, "FdStream", None)

#: The class of a run's instruments; of a release that lacks it, nothing.
stock_instruments: Any = getattr(_run, "Instruments", object)

#: Of this thread: ``.runner``, and ``.task`` while a task is running.
run_context: Any = getattr(_run, "GLOBAL_RUN_CONTEXT", None)
WaitTaskRescheduled: Any = getattr(_traps, "WaitTaskRescheduled", None)

#: Of a task: the IO manager of its run. One look at a thread-local less than by way of
#: the run context, for a caller that has the task.
manager_of: Callable[[Any], Any] = attrgetter("_runner.io_manager")
#: Of a task: the runner of its run, for a caller outside of any run.
runner_of: Callable[[Any], Any] = attrgetter("_runner")

#: Of a stream: the guard that finds two tasks in one direction.
send_guard: Callable[[Any], Any] = attrgetter("_send_conflict_detector")
receive_guard: Callable[[Any], Any] = attrgetter("_receive_conflict_detector")


def hold_send_guard(stream: Any) -> Any:
    """What ``with send_guard(stream):`` does first; the guard, for `let_go`.

    The statement costs 0.4 us, this and `let_go` 0.1.
    """
    guard = stream._send_conflict_detector
    if guard._held or not FAST:
        guard.__enter__()  # raises BusyResourceError in trio's words, if it is held
    guard._held = True
    return guard


def let_go(guard: Any) -> None:
    """What ``with guard:`` does last."""
    guard._held = False


def note_shutdown(sock: Any, flag: int) -> None:
    """What a socket of trio's does after shutdown(2)."""
    if flag in (socket.SHUT_WR, socket.SHUT_RDWR):
        sock._did_shutdown_SHUT_WR = True


#: Of an FdStream: what holds its file descriptor in ``.fd``, -1 when closed.
fd_holder: Callable[[Any], Any] = attrgetter("_fd_holder")
held_fd: Callable[[Any], int] = attrgetter("fd")

_conflict_detector = getattr(_util, "ConflictDetector", lambda _message: None)("")

_NAMES: tuple[tuple[object, str, str], ...] = (
    (_run, "trio._core._run", "TheIOManager GLOBAL_RUN_CONTEXT Runner Task Instruments"),
    (stock_instruments, "trio._core._run.Instruments", "add_instrument remove_instrument call"),
    (_traps, "trio._core._traps", "WaitTaskRescheduled"),
    (_socket, "trio._socket", "_SocketType"),
    (_unix_pipes, "trio._unix_pipes", "FdStream"),
    (stock_socket_type, "trio._socket._SocketType", "_resolve_address_nocp did_shutdown_SHUT_WR"),
    (
        stock_io_manager,
        "TheIOManager",
        "close statistics force_wakeup get_events process_events "
        + "wait_readable wait_writable notify_closing",
    ),
    (trio.lowlevel, "trio.lowlevel", "enable_ki_protection"),
    (_conflict_detector, "trio._util.ConflictDetector", "_held __enter__ __exit__"),
)
_FIELDS: tuple[tuple[str, str], ...] = (
    ("Runner", "io_manager runq instruments is_guest clock"),
    ("Task", "_runner _next_send_fn _next_send _abort_func custom_sleep_data coro"),
)
# What a class sets in its ``__init__``: there is no instance to look at.
_SET_IN_INIT: tuple[tuple[Any, str, str], ...] = (
    (stock_socket_type, "_SocketType", "_sock _did_shutdown_SHUT_WR"),
    (trio.SocketStream, "SocketStream", "_send_conflict_detector"),
    (fd_stream_type, "FdStream", "_fd_holder _send_conflict_detector _receive_conflict_detector"),
)


def missing_names() -> list[str]:
    """The private names that this trio lacks; none for a release that we know."""
    missing = [
        f"{where}.{name}"
        for owner, where, names in _NAMES
        for name in names.split()
        if not hasattr(owner, name)
    ]
    for class_name, names in _FIELDS:
        fields = {
            attribute.name
            for attribute in getattr(getattr(_run, class_name, None), "__attrs_attrs__", ())
        }
        missing += [f"{class_name}.{name}" for name in names.split() if name not in fields]
    for owner, where, names in _SET_IN_INIT:
        code = getattr(getattr(owner, "__init__", None), "__code__", None)
        set_there = getattr(code, "co_names", ())
        missing += [f"{where}.{name}" for name in names.split() if name not in set_there]
    if not hasattr(getattr(_run, "Runner", None), "force_guest_tick_asap"):
        missing.append("Runner.force_guest_tick_asap")
    return missing


def bind_io_manager(manager_class: Any) -> None:
    """Have every later run of this process made with *manager_class*."""
    setattr(_run, "TheIOManager", manager_class)  # noqa: B010 - mypy: not exported


def bound_io_manager() -> Any:
    """What later runs are made with."""
    return getattr(_run, "TheIOManager")  # noqa: B009


def bind_socket_type(socket_class: Any) -> None:
    """Have every later socket of this process made as *socket_class*."""
    setattr(_socket, "_SocketType", socket_class)  # noqa: B010


def bound_socket_type() -> Any:
    """What later sockets are made as."""
    return _socket._SocketType


def is_wakeup(fd: Any) -> bool:
    """Whether this is what trio itself waits on, so that other threads can wake the run."""
    wakeup = getattr(getattr(run_context.runner, "entry_queue", None), "wakeup", None)
    return wakeup is not None and getattr(wakeup, "wakeup_sock", None) is fd


class Wakeup:
    """What wakes a run, trio's pair of sockets: for threads somebody else may stand in its place.

    All that wakes it holds the lock of the queue meanwhile.
    """

    def __init__(self, lock: Any, pair: Any) -> None:
        self._lock = lock
        self._pair = pair

    @property
    def has_signals(self) -> bool:
        """Whether a byte comes with each signal."""
        return self._pair.old_wakeup_fd is not None

    @property
    def signals_fd(self) -> int:
        """Where it is read."""
        return int(self._pair.wakeup_sock.fileno())

    def drain(self) -> None:
        """Read all such bytes."""
        self._pair.drain()

    def replace(self, ring: Callable[[], None], wait: Callable[[], Awaitable[None]]) -> None:
        """Have the run be woken by *ring*, for which its task waits by *wait*."""
        with self._lock:
            vars(self._pair).update(zip(_REPLACED, (ring, wait), strict=True))

    def give_back(self) -> None:
        """Have it be woken by the pair again."""
        with self._lock:
            for name in _REPLACED:
                vars(self._pair).pop(name, None)

    def pass_lock(self) -> None:
        """See what those have done who had the lock, and be seen by those who get it."""
        with self._lock:
            pass


_REPLACED = ("wakeup_thread_and_signal_safe", "wait_woken")
_WAKEUP_NAMES = (*_REPLACED, "wakeup_sock", "old_wakeup_fd", "drain")


def wakeup_of(runner: Any) -> Wakeup | None:
    """What wakes a run; None where this trio does it otherwise, or somebody else has a hand in it.

    A run does without, so these names are not among those that a known trio has.
    """
    queue = getattr(runner, "entry_queue", None)
    lock, pair = getattr(queue, "lock", None), getattr(queue, "wakeup", None)
    if lock is None or not all(hasattr(pair, name) for name in _WAKEUP_NAMES):
        return None
    own = getattr(pair, "__dict__", dict.fromkeys(_REPLACED))
    return None if any(name in own for name in _REPLACED) else Wakeup(lock, pair)


def current_runner() -> Any:
    """The runner of this thread's run.

    Raises:
      RuntimeError: there is none.
    """
    try:
        return run_context.runner
    except AttributeError:
        raise RuntimeError("must be called from async context") from None


@types.coroutine
def _park(trap: Any) -> Generator[Any, Any, Any]:
    return (yield trap)


class _Shown:
    """Frames to be shown of a task that sleeps in C, by the names that they are shown with."""

    @staticmethod
    def park() -> types.FrameType:
        return sys._getframe()

    @staticmethod
    def receive_some() -> types.FrameType:
        return sys._getframe()

    @staticmethod
    def send_all() -> types.FrameType:
        return sys._getframe()


#: Where `_hot` finds what it needs of trio, by its name there.
_FIELDS_OF_HOT = {
    "runner_io_manager": ("Runner", "io_manager"),
    "task_abort_func": ("Task", "_abort_func"),
    "task_coro": ("Task", "coro"),
    "task_next_send": ("Task", "_next_send"),
    "task_next_send_fn": ("Task", "_next_send_fn"),
    "task_runner": ("Task", "_runner"),
    "task_sleep_data": ("Task", "custom_sleep_data"),
}


def _tell_hot() -> None:
    """Make known to `_hot` what it reads and writes of trio: fields, by their descriptors."""
    fields = {
        name: getattr(getattr(_run, class_name, None), field, None)
        for name, (class_name, field) in _FIELDS_OF_HOT.items()
    }
    if all(isinstance(field, types.MemberDescriptorType) for field in fields.values()):
        _hot_parts.hot.know(
            run_context=run_context,
            park_frame=_Shown.park,
            receive_frame=_Shown.receive_some,
            send_frame=_Shown.send_all,
            guard_name="_send_conflict_detector",
            held_name="_held",
            stdlib_name="_sock",
            **fields,
        )
    else:
        _hot_parts.refuse("this trio keeps its tasks otherwise")


if _hot_parts.hot is not None:
    _tell_hot()

#: ``await park(trap)``: sleep until woken; the value that the task was woken with, or,
#: if its abort function answered SUCCEEDED, an `outcome.Error` to be unwrapped.
park: Callable[[Any], Awaitable[Any]] = _park if _hot_parts.hot is None else _hot_parts.hot.park


def make_waker(runner: Any) -> Callable[[Any, Any], None]:
    """A function ``wake(task, value)`` for a run: *value* is what `park` returns."""
    runq = runner.runq
    instruments = runner.instruments
    # Instruments is a UserDict, whose ``in`` is a Python function (0.1 us); its dict's is not.
    hooks = getattr(instruments, "data", instruments)

    @trio.lowlevel.enable_ki_protection
    def wake(task: Any, value: Any) -> None:
        # What Runner.reschedule does, without an Outcome around the value.
        task._next_send_fn = task.coro.send
        task._next_send = value
        task._abort_func = None
        task.custom_sleep_data = None
        runq.append(task)
        if "task_scheduled" in hooks:
            instruments.call("task_scheduled", task)

    if not FAST:

        @trio.lowlevel.enable_ki_protection
        def wake_plainly(task: Any, value: Any) -> None:
            runner.reschedule(task, value)

        return wake_plainly
    if runner.is_guest:

        @trio.lowlevel.enable_ki_protection
        def wake_guest(task: Any, value: Any) -> None:
            if not runq:
                runner.force_guest_tick_asap()
            wake(task, value)

        return wake_guest
    if _hot_parts.hot is not None and isinstance(hooks, dict):
        in_c: Callable[[Any, Any], None] = _hot_parts.hot.Waker(runq.append, hooks, wake).wake
        return in_c
    return wake
