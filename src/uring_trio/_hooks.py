"""Puts our manager, sockets and streams in trio's places, and takes them out again.

What is exchanged, and for how long
-----------------------------------
*The manager* of one run (``uring_trio.run``) is swapped by an instrument, before anything
is registered with trio's own. ``install()`` rebinds the class that trio calls for each
run: to a Python class, because trio's tests set attributes on it, and one whose ``__new__``
hands out trio's own manager where this run gets no ring.

*Sockets and stream methods* are process-wide, since a class has one set of methods; so are
those of trio's own socket class, for sockets that are older than the ring (`_adoption`). They
ask at each call which manager the current run has, so on epoll they do what trio's do.
They stay as long as they have a user: ``install()`` is one, each run on the ring another.
A user is an object in a table and not a count: adding it and removing it are single steps
that can be repeated, so neither a KeyboardInterrupt nor a manager that was dropped without
``close()`` leaves the books wrong.

Only what is trio's own is replaced, and only what is ours is taken out: a method or class
that somebody else has put there stays.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from uring_trio import _adoption, _probe, _streams, _trio_private
from uring_trio._errors import UringUnavailable
from uring_trio._io_manager import UringIOManager
from uring_trio._kernel import RingSizes
from uring_trio._probe import (
    PASSING_ERRORS,
    Choice,
    choose,
    forget_kernel,
    installed_ring,
    logger,
    remember_run,
    stock_backend,
    warn_once,
    why_refused,
)
from uring_trio._process import in_child, locks
from uring_trio._shortage import room_for_the_program
from uring_trio._sockets import UringSocket

if TYPE_CHECKING:
    from uring_trio._remedies import Failure
    from uring_trio._ring_options import RingOptions
    from uring_trio._statistics import IOStatistics


@dataclass
class Run:
    """A run that came past here, for those who count."""

    backend: str
    demand: str  # what it was asked to be on
    failure: Failure | None  # why it is not on the ring
    statistics: IOStatistics | None = None  # of the ring, once it is closed

    def end(self, statistics: IOStatistics) -> None:
        """Its ring is closed."""
        self.statistics = statistics


Methods = dict[Any, dict[str, Callable[..., Any]]]

REPLACEMENTS: Methods = _streams.REPLACEMENTS | _adoption.REPLACEMENTS
ORIGINALS: Methods = _streams.ORIGINALS | _adoption.ORIGINALS
# The same, flat, since each run looks at all of them twice: where, by which name, trio's, ours.
_METHODS = [
    (owner, name, ORIGINALS[owner][name], ours)
    for owner, methods in REPLACEMENTS.items()
    for name, ours in methods.items()
]

# Called with each run as it starts, on its thread. They must not raise.
observers: list[Callable[[Run], None]] = []


class _Thread(threading.local):
    # An entrance is about to swap this run's manager, so trio may begin with its own.
    entrance_waiting = False

    def expect_entrance(self, expected: bool) -> None:
        """Whether the next run of this thread is brought onto its ring by an entrance."""
        self.entrance_waiting = expected


_thread = _Thread()

# user -> the weak reference that removes it with its manager; None for install().
_users: dict[object, weakref.ref[UringIOManager] | None] = {}
_INSTALL = object()


def _let_go_in_child() -> None:
    """The parent's runs are none of a forked child's."""
    for user in [user for user in _users if user is not _INSTALL]:
        del _users[user]
    _settle()


in_child("users", _let_go_in_child)


class InstalledIOManager(UringIOManager):
    """What trio makes for each run while ``install()`` is in force."""

    def __new__(cls) -> Any:
        """This run's manager: a ring, or trio's own where it gets none."""
        if _thread.entrance_waiting:
            return _trio_private.stock_io_manager()
        choice = choose("auto")
        manager: Any = super().__new__(cls)
        try:
            failure = _open_ring(choice, manager, installed_ring())
            if failure is not None:
                manager = _trio_private.stock_io_manager()
            _announce(manager, choice, failure)
        except BaseException:  # KeyboardInterrupt: trio does not hold it back yet
            _close_if_made(manager)
            raise
        return manager

    def __init__(self) -> None:
        """Nothing: the ring was opened where it was decided, and only once."""


class Entrance(trio.abc.Instrument):
    """Brings the ring into one run: an instrument that is gone before the first task step.

    The ring is opened before trio is called, because trio swallows what an instrument
    raises. For the same reason ``check`` must be called afterwards.
    """

    def __init__(self, choice: Choice, ring: RingOptions | None = None) -> None:
        self._choice = choice
        self._ring = ring or installed_ring()
        self._failure = choice.failure
        self._manager: UringIOManager | None = None
        self._error: BaseException | None = None
        self._entered = False

    def open(self) -> None:
        """Open the ring, unless epoll is decided; on the thread that will run it.

        Raises:
          UringUnavailable: the ring is demanded, and cannot be had.
        """
        # Ours to close from before it has a ring, so that no interrupt can lose it.
        self._manager = UringIOManager.__new__(UringIOManager)
        self._failure = _open_ring(self._choice, self._manager, self._ring)
        if self._failure is not None:
            self._manager = None
        _thread.expect_entrance(True)

    def gives_way(self, exc: OSError | MemoryError) -> bool:
        """Whether trio failed before the run began, and may succeed where there is no ring.

        The ring is opened first, and takes what trio may then lack: a run on stock starts
        with three descriptors, where a ring makes it four until trio's own manager is gone.

        Raises:
          UringUnavailable: so it is, and the ring is demanded.
        """
        if self._manager is None or self._entered or self._error is not None:
            return False
        failure = why_refused(exc)
        if self._choice.demand == "io_uring":
            raise UringUnavailable(failure.reason, failure.remedy) from exc
        self._choice = Choice(self._choice.demand, failure)
        return True

    def __dir__(self) -> list[str]:
        # trio looks at each name there is for those of an instrument.
        return ["before_run"]

    def before_run(self) -> None:
        """Called by trio when the run exists and nothing is registered with its manager."""
        self.enter()
        trio.lowlevel.remove_instrument(self)

    def enter(self) -> None:
        """Swap the manager of the run that is about to begin; `check` tells if it worked."""
        _thread.expect_entrance(False)
        try:
            self._swap()
        except BaseException as exc:  # noqa: BLE001  trio would swallow it
            self._error = exc

    def _swap(self) -> None:
        runner = _trio_private.current_runner()
        old = runner.io_manager
        if self._manager is not None:
            runner.io_manager = self._manager
            self._manager = None  # the run's now, and closed with it
            old.close()
        elif isinstance(old, UringIOManager):
            # By install(), before it was known that this run asks for epoll.
            runner.io_manager = _trio_private.stock_io_manager()
            old.close()
        self._entered = True
        _announce(runner.io_manager, self._choice, self._failure)

    def close(self) -> None:
        """Close what did not get into a run: trio refused to start it."""
        _thread.expect_entrance(False)
        if self._manager is not None:
            _close_if_made(self._manager)
            self._manager = None

    def check(self) -> None:
        """See whether the run that trio has started, or finished, is on what it should be.

        Raises:
          UringUnavailable: the ring is demanded, and the run was not on it.
        """
        if self._entered:
            return
        reason = f"trio {trio.__version__} did not let the ring into the run: {self._error!r}"
        if self._choice.demand == "io_uring":
            remedy = "Please report this; backend='epoll' does without."
            raise UringUnavailable(reason, remedy) from self._error
        logger.error("this runs on %s: %s", stock_backend(), reason, exc_info=self._error)


def install(choice: Choice) -> None:
    """Have trio make its managers through us from now on.

    Raises:
      RuntimeError: somebody else has replaced trio's manager already.
    """
    bound = _trio_private.bound_io_manager()
    if bound not in (_trio_private.stock_io_manager, InstalledIOManager):
        raise RuntimeError(
            f"trio's IO manager is replaced already, by {bound!r}; have that undone first"
        )
    with locks.users:
        _trio_private.bind_io_manager(InstalledIOManager)
        if choice.failure is None:
            # Also for sockets that are made before the first run.
            _users[_INSTALL] = None
        _settle()


def uninstall() -> None:
    """Put trio's own manager back; runs under way keep theirs, and what they use."""
    with locks.users:
        if _trio_private.bound_io_manager() is InstalledIOManager:
            _trio_private.bind_io_manager(_trio_private.stock_io_manager)
        _users.pop(_INSTALL, None)
        _settle()


def is_installed() -> bool:
    return _trio_private.bound_io_manager() is InstalledIOManager


def _open_ring(choice: Choice, manager: UringIOManager, ring: RingOptions | None) -> Failure | None:
    """Give the manager a ring and its place among the users, or say why it gets none."""
    failure = choice.failure
    if failure is None:
        try:
            # Who insists on the ring has decided what its memory is for.
            with room_for_the_program() if choice.demand == "auto" else contextlib.nullcontext():
                _make_ring(manager, ring)
            _add_user(manager)
        except (OSError, MemoryError) as exc:
            with contextlib.suppress(MemoryError):  # its ring goes with it, then
                _close_if_made(manager)
            failure = why_refused(exc)
            if getattr(exc, "errno", errno.ENOMEM) not in PASSING_ERRORS:
                forget_kernel()
            if choice.demand == "io_uring":
                raise UringUnavailable(failure.reason, failure.remedy) from exc
        else:
            return None
    if choice.demand != "epoll":
        warn_once(failure)
    return failure


def _make_ring(manager: UringIOManager, ring: RingOptions | None) -> None:
    """Make the manager's ring, waiting for memory that is on its way.

    The kernel takes a closed ring apart later, and only then gives back what it had
    locked. So a small RLIMIT_MEMLOCK refuses the next of two runs in a row, unless it
    waits for that.
    """
    sizes = RingSizes(ring)
    for wait_s in (*_probe.MEMORY_WAITS_S, None):
        try:
            UringIOManager.__init__(manager, sizes)
        except OSError as exc:
            on_its_way = sizes.halved or _probe.gave_up_a_ring_just_now()
            if exc.errno != errno.ENOMEM or wait_s is None or not on_its_way:
                raise
            time.sleep(wait_s)
        else:
            return


def _close_if_made(manager: Any) -> None:
    """Close a manager that trio did not get; one whose ring was never made has nothing."""
    if hasattr(manager, "slots"):
        manager.close()


def _add_user(manager: UringIOManager) -> None:
    """Keep sockets and streams in place until *manager* is closed, or gone."""
    user = object()
    # trio closes nothing if it fails before the run exists; then the manager is collected.
    alive = weakref.ref(manager, lambda _: _remove_user(user))
    manager.when_closed(lambda: _remove_user(user))
    with locks.users:
        _users[user] = alive
        _settle()


def _remove_user(user: object) -> None:
    _probe.note_ring_given_up()
    with locks.users:
        if _users.pop(user, None) is not None:
            _settle()


def _announce(manager: Any, choice: Choice, failure: Failure | None) -> None:
    """A run starts on *manager*."""
    remember_run(manager, failure)
    if not observers:
        return
    run = Run("io_uring" if failure is None else stock_backend(), choice.demand, failure)
    if isinstance(manager, UringIOManager):
        _note_statistics_at_close(manager, run)
    for observer in observers:
        observer(run)


def _note_statistics_at_close(manager: UringIOManager, run: Run) -> None:
    alive = weakref.ref(manager)

    def closed() -> None:
        closing = alive()
        if closing is not None:
            run.end(closing.statistics())

    manager.when_closed(closed)


def _settle() -> None:
    """Make sockets and streams ours if anybody uses them, else trio's."""
    if _users:
        _exchange_socket_type(_trio_private.stock_socket_type, UringSocket)
        for owner, name, original, ours in _METHODS:
            if owner.__dict__.get(name) is original:
                setattr(owner, name, ours)
    else:
        _exchange_socket_type(UringSocket, _trio_private.stock_socket_type)
        for owner, name, original, ours in _METHODS:
            if owner.__dict__.get(name) is ours:
                setattr(owner, name, original)


def _exchange_socket_type(there: type, wanted: type) -> None:
    if _trio_private.bound_socket_type() is there:
        _trio_private.bind_socket_type(wanted)
