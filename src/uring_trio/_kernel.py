"""The one Python door to the C engine: a ring, its operations, its memory.

Nothing above this module, `_memory` and `_beside` sees cffi. Operations are small integers
(slots), results are tuples of integers, data is ``bytes``, and the functions that prepare a
stream's operation are `functools.partial` objects around the C function with the engine
already in them: a Python method around each would cost as much again as the call.

cffi releases the GIL around every call and protects no C data, so a `Ring` belongs to
the thread that made it, without exception: waking a ring from another thread goes
through an eventfd, which the kernel guards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from uring_trio import _hot_parts
from uring_trio._kernel_names import FEATURE_NAMES, SETUP_FLAG_NAMES, opcode_name
from uring_trio._ring_options import CQ_ENTRIES, SQ_ENTRIES, RingOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from uring_trio._memory import Message

try:
    from uring_trio._engine import ffi as _ffi
    from uring_trio._engine import lib as _lib
except ImportError:  # not built: not Linux, or no compiler
    _ffi = _lib = None

if _hot_parts.hot is not None:
    if _lib is None:
        _hot_parts.refuse("there is no engine")
    elif _hot_parts.hot.TABLE_VERSION != _lib.ut_table().version:
        _hot_parts.refuse("it was built at another time than the engine")

# What the engine refuses to do in a forked child (errno EOWNERDEAD).
OWNER_DEAD = -130
EINTR = -4
EAGAIN = -11
ETIME = -62
ENOBUFS = -105
ECANCELED = -125

Call = Callable[..., int]

# Seconds before what has found no memory in the kernel is tried again: the engine's own pause.
RETRY_S = 0.001

# Of a slot that a preparing function returns: the tick is long, see csrc/engine.h.
SLOT_LEAVES = 1 << 30

# Of a call on a ring that is closed.
RING_CLOSED = -errno.EBADF

# poll(2)
POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
POLLRDHUP = 0x2000

INT_MAX = 0x7FFFFFFF  # of C

CQE_F_BUFFER = 1 << 0
CQE_F_MORE = 1 << 1
CQE_F_SOCK_NONEMPTY = 1 << 2
RECORD_WAITED = 1 << 14  # the operation did not end with its first attempt

# Halved down to this where RLIMIT_MEMLOCK is small: 64 KiB takes one ring of 128.
SQ_ENTRIES_MIN = 32

# (buffers, bytes of each). A stream gets buffers as large as its messages: the kernel
# chops what does not fit into several operations, and one buffer per message is what
# makes 100 KiB messages cheaper than epoll's (docs/design.md). One-shot receives hold a
# buffer only from completion to the end of the batch, so few are enough, and fewer are
# warmer: 16 and 4 large ones in place of 32 and 16 took 8 connections x 100 KiB from 0.55
# of stock's CPU to 0.51, and 8 x 1 MiB from 0.68 to 0.62.
BUFFER_GROUPS = ((128, 8 << 10), (16, 32 << 10), (4, 128 << 10))
GROUP_SIZES = tuple(size for _, size in BUFFER_GROUPS)

# The most that one operation moves: the kernel's own limit for read and write.
TRANSFER_MAX = 0x7FFFF000

# Of a wait's answer, cqes seen << 32 | records of the batch: the records.
RECORDS_MASK = (1 << 32) - 1

# What a look answers: whether a thread that sleeps on the eventfd would be told of all.
LOOK_NOTHING, LOOK_SOMETHING, LOOK_NO_MEMORY = range(3)

# Bytes; glibc's thresholds become this and twice this, as in any program that has ever
# freed a block of the size.
LARGE_BLOCK = 8 * GROUP_SIZES[-1]

# A tick that takes longer holds nothing back that somebody else waits for: csrc/tick.c. An
# enter in the middle of it costs a thousandth of that, and nobody sees 1 ms beside a tick of
# several. (A constant: who has longer ticks gains nothing by more, or by less.)
LONG_TICK_NS = 1_000_000

# Of each step of the probe, which takes microseconds. When the time is over the kernel is
# looked at once more, so no pause of this process makes it too short; and a sandbox that
# never answers costs so much at the start of each run.
PROBE_TIMEOUT_NS = 100_000_000
# The step that fails where Python itself finds no memory for what a ring needs.
PYTHON_MEMORY = "allocate Python's objects"

_RECORD = struct.Struct("IiII")  # slot, res, flags, offset: struct ut_record
RECORD_SIZE = _RECORD.size
unpack_records = _RECORD.iter_unpack


def os_error(result: int) -> OSError:
    """The exception for a negative result: a cqe's, or of a call beside the ring."""
    return OSError(-result, os.strerror(-result))


def load_extension() -> tuple[Any, Any]:
    """The extension's ``(ffi, lib)``.

    Raises:
      ImportError: it was not built.
    """
    if _lib is None:
        raise ImportError(
            "uring_trio was installed without its C extension; "
            "install it again on Linux, with a C compiler and Python's headers"
        )
    return _ffi, _lib


def extension_available() -> bool:
    """Whether the C engine was built; it never is off Linux."""
    return _lib is not None


@dataclass(frozen=True)
class KernelProbe:
    """What this kernel did when it was tried.

    Attributes:
      error: 0, or the errno of the step that failed.
      stage: that step, or the last one.
      setup_flags: flags that the ring was made with.
      features: what the kernel says of the ring, and what was seen to work.
      opcodes: operations that the kernel has.
      limits: sizes of the ring in entries, and of the buffer pool in bytes.
    """

    error: int
    stage: str
    setup_flags: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    opcodes: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)


def _names(bits: int, names: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(name for mask, name in names if bits & mask)


@cache
def _config_of(options: RingOptions) -> Any:
    """A struct ut_config of these, to be copied: to fill one takes as long as a look at a ring."""
    config = _ffi.new("struct ut_config *")
    config.sq_entries = options.sq_entries
    config.cq_entries = options.cq_entries
    config.sq_entries_min = min(SQ_ENTRIES_MIN, config.sq_entries)
    for index, (entries, size) in enumerate(BUFFER_GROUPS):
        config.groups[index].entries, config.groups[index].buffer_size = entries, size
    return config


class RingSizes:
    """The sizes of a ring that is to be made, by which the kernel is tried as well.

    An attempt that had memory for the ring, and then not for its buffer rings, halves
    them. The kernel gives the memory of a closed ring back later, so whoever waits for
    that tries again with the same object.
    """

    def __init__(self, options: RingOptions | None = None) -> None:
        self.options = options or RingOptions()
        if _ffi is None:
            return
        config = self.c = _ffi.new("struct ut_config *", _config_of(self.options)[0])
        config.long_tick_ns = LONG_TICK_NS

    @property
    def halved(self) -> bool:
        """Whether an attempt has left less to be tried."""
        return _ffi is not None and bool(self.c.sq_entries < self.options.sq_entries)


def probe_kernel(sizes: RingSizes | None = None) -> KernelProbe:
    """Make a throw-away ring and try by doing every feature that is required.

    Never raises; what failed is in the result.
    """
    if _lib is None:
        return KernelProbe(error=0, stage="extension")
    try:
        found = _ffi.new("struct ut_probe *")
        config = (sizes or RingSizes()).c
        _lib.ut_probe_run(_lib.ut_kernel_in_use, config, PROBE_TIMEOUT_NS, found)
        return _read_probe(found)
    except MemoryError:
        return KernelProbe(error=errno.ENOMEM, stage=PYTHON_MEMORY)


def _read_probe(found: Any) -> KernelProbe:
    seen_to_work: tuple[str, ...] = ()
    if found.error == 0:
        seen_to_work = ("BUFFER_RINGS", "CANCEL_BY_OPERATION")
    return KernelProbe(
        error=-found.error,
        stage=_ffi.string(found.stage).decode(),
        setup_flags=_names(found.setup_flags, SETUP_FLAG_NAMES.items()),
        features=_names(
            found.features, ((1 << bit, name) for bit, name in enumerate(FEATURE_NAMES))
        )
        + seen_to_work,
        opcodes=tuple(opcode_name(opcode) for opcode in range(256) if found.opcodes[opcode]),
        limits={
            "sq_entries": SQ_ENTRIES,
            "cq_entries": CQ_ENTRIES,
            "buffer_pool_bytes": sum(count * size for count, size in BUFFER_GROUPS),
        },
    )


def try_ring_alone(sq_entries: int, cq_entries: int) -> int:
    """Make a ring of these sizes and nothing else, and close it: 0, or the errno."""
    _, lib = load_extension()
    return -int(lib.ut_probe_setup(lib.ut_kernel_in_use, sq_entries, cq_entries))


def _raise_trim_threshold() -> None:
    """Have glibc keep the memory of a large message for the next one.

    A ``bytes`` of 128 KiB lies just at malloc's first thresholds: each one that is dropped
    goes back to the kernel, and the next one is faulted in page by page (8 connections that
    drop what they receive: 1.7 times stock's CPU; with this 0.8). malloc learns from the
    first larger block that is freed, so it is given one; other allocators do not mind.
    """
    with contextlib.suppress(MemoryError):  # then large messages are dear, until the next run
        _free_large_block()


@cache
def _free_large_block() -> None:
    """Once in a process, and in those that it forks: to fill the block takes 0.1 ms."""
    bytes(LARGE_BLOCK)


def _address(pointer: Any) -> int:
    return int(_ffi.cast("uintptr_t", pointer))


def read_counts(found: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Counters, and operations submitted by opcode name, out of a struct ut_statistics."""
    counters = ("enters", "cqes", "stale_cqes", "queued", "in_flight", "leases_out")
    return (
        {name: getattr(found, name) for name in counters},
        {opcode_name(i): n for i, n in enumerate(found.operations) if n},
    )


def _refuse(*_: Any) -> int:
    """What a ring answers that is closed."""
    return RING_CLOSED


class Ring:
    """One io_uring instance, for the thread that makes it.

    The functions that prepare an operation return its slot, or a negative errno
    (see `error`), and for what others wait for perhaps SLOT_LEAVES beside the slot: who stands
    there is a matter of `Slots.enter`. What they mean is in csrc/prep.h.

    Raises:
      OSError: the ring could not be made; the errno says why.
    """

    def __init__(self, sizes: RingSizes | None = None) -> None:
        _, lib = load_extension()
        sizes = sizes or RingSizes()
        config = sizes.c
        self.options = sizes.options
        # The box owns the engine from its first moment: a KeyboardInterrupt may strike as
        # soon as the C call returns, before there is a name to hold what it returned.
        self._box = _ffi.gc(_ffi.new("struct ut_engine **"), lib.ut_engine_close_boxed)
        stage = _ffi.new("const char **")
        error = lib.ut_engine_open_boxed(lib.ut_kernel_in_use, config, self._box, stage)
        if error < 0:
            step = _ffi.string(stage[0]).decode()
            raise OSError(-error, f"{step}: {os.strerror(-error)}")
        engine = self._engine = self._box[0]
        _raise_trim_threshold()
        self.owner_pid = os.getpid()
        self.fd: int = engine.ring.fd
        size = engine.record_capacity * RECORD_SIZE
        #: Where a wait leaves its records; gone with `close`.
        self.record_area = memoryview(_ffi.buffer(engine.records, size))
        #: All receive buffers; ``pool[a:b]`` copies out ``bytes``. Gone with `close`.
        self.pool: Any = _ffi.buffer(engine.pool, engine.pool_size)
        #: The addresses of both, for `_hot`.
        self.record_address, self.pool_address = _address(engine.records), _address(engine.pool)
        # Each of these is gone with `close`, too: see there.
        self.wait: Call = partial(lib.ut_engine_wait, engine)
        self.flush: Call = partial(lib.ut_engine_flush, engine)
        self.look: Call = partial(lib.ut_engine_look, engine)
        self.unsubmitted: Call = partial(lib.ut_engine_unsubmitted, engine)
        self.cancel: Call = partial(lib.ut_engine_cancel, engine)
        self.recv: Call = partial(lib.ut_prep_recv, engine)
        self.send: Call = partial(lib.ut_prep_send, engine)
        self._door: Any = None
        if _hot_parts.hot is not None:
            table = _address(lib.ut_table())
            self._door = _hot_parts.hot.Door(table, _address(engine), self.send)
            self.recv, self.send = self._door.recv, self._door.send
        self.recv_into: Call = partial(lib.ut_prep_recv_into, engine)  # a pin, or a Memory's `c`
        self.read: Call = partial(lib.ut_prep_read, engine)
        self.write: Call = partial(lib.ut_prep_write, engine)
        self.poll: Call = partial(lib.ut_prep_poll, engine)
        self.timeout: Call = partial(lib.ut_prep_timeout, engine)
        self.recv_multishot: Call = partial(lib.ut_prep_recv_multishot, engine)
        self.send_from: Call = partial(lib.ut_prep_send_from, engine)
        self.accept_fd: Call = partial(lib.ut_prep_accept_fd, engine)

    def leaves(self) -> bool:
        """Whether what others wait for is to leave now, and not with the next wait."""
        return bool(self._box[0]) and _lib.ut_engine_leaves(self._engine) > 0

    def submit(self) -> None:
        """Have the kernel begin what others wait for: a tick is long."""
        if self._box[0]:
            _lib.ut_engine_submit(self._engine)

    def recvmsg(self, fd: int, message: Message, flags: int, poll_first: int) -> int:
        """Receive into a message."""
        return int(_lib.ut_prep_recvmsg(self._engine, fd, message.c, flags, poll_first))

    def sendmsg(self, fd: int, message: Message, flags: int) -> int:
        """Send a message."""
        return int(_lib.ut_prep_sendmsg(self._engine, fd, message.c, flags))

    def accept(self, fd: int, message: Message, flags: int, poll_first: int) -> int:
        """Accept a connection; the peer's address goes into the message."""
        return int(_lib.ut_prep_accept(self._engine, fd, message.c, flags, poll_first))

    def connect(self, fd: int, message: Message) -> int:
        """Connect to the message's name."""
        return int(_lib.ut_prep_connect(self._engine, fd, message.c))

    @property
    def failed_enters(self) -> int:
        """How many enters have answered with an error so far, EINTR and ETIME included."""
        return int(self._engine.failed_enters)

    def records(self, count: int) -> Iterator[tuple[int, int, int, int]]:
        """The batch's records: slot, result, flags, offset into the pool."""
        return unpack_records(self.record_area[: count * RECORD_SIZE])

    def register_eventfd(self, event_fd: int) -> None:
        """Signal *event_fd* when completions begin to wait for a `wait`; again, so anew."""
        result = _lib.ut_engine_register_eventfd(self._engine, event_fd)
        if result < 0:
            raise OSError(-result, f"register eventfd: {os.strerror(-result)}")

    def error(self, result: int) -> Exception:
        """The exception for a negative answer of the functions here."""
        if result == OWNER_DEAD:
            return RuntimeError(
                f"this io_uring belongs to process {self.owner_pid}; start a new run after fork"
            )
        return OSError(-result, f"io_uring: {os.strerror(-result)}")

    def statistics(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counters, and operations submitted so far by opcode name."""
        return read_counts(self.counts())

    def counts(self) -> Any:
        """The same as C has it; see `read_counts`."""
        found = _ffi.new("struct ut_statistics *")
        _lib.ut_engine_statistics(self._engine, found)
        return found

    def in_flight(self) -> int:
        """Operations that the kernel has not finished, watches of others included."""
        engine = self._engine
        return int(engine.in_flight + engine.lingering)

    def abandon(self) -> None:
        """In a forked child: close its copy of the fd, now and not again when collected."""
        self._box[0] = _ffi.NULL
        _lib.ut_close(self.fd)

    def close(self, *, leak: bool) -> bool:
        """Close the ring and free its memory; whoever calls it afterwards is refused.

        Nobody does but coroutines of a run that was lost, when they are collected: what their
        frames unwind is not all ours.

        Args:
          leak: leave alone the memory that the kernel may still write to.

        Returns:
          Whether memory was given up.
        """
        self.record_area.release()
        self.record_address = self.pool_address = 0
        if self._door is not None:
            self._door.close()
        self._box[0] = _ffi.NULL
        self.wait = self.flush = self.look = self.unsubmitted = self.cancel = _refuse
        self.recv = self.send = self.recv_into = self.read = self.write = _refuse
        self.poll = self.timeout = self.recv_multishot = self.send_from = self.accept_fd = _refuse
        leaked = bool(_lib.ut_engine_close(self._engine, leak))
        self._engine = None
        return leaked
