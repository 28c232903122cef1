"""No memory for a ring: which limit it was, found out by looking and by trying.

ENOMEM has causes that want different remedies, and the errno does not tell them apart:

- *Address space.* RLIMIT_AS, RLIMIT_DATA, or what the machine may promise altogether. Then
  an ordinary mapping of the size fails too, and which of them it is shows in a mapping that
  only one of them counts.
- *Locked memory.* Some kernels count rings against RLIMIT_MEMLOCK, over all processes of a
  user, and some do not; the release number does not tell which. A ring that is larger than
  the limit does: it is refused, or it is made. Where the limit is larger than any ring this
  cannot be tried, and it is said that it is not known.
- *A memory cgroup*, where one of those above this process is full.
- *The kernel itself*, else.

So does the room for the program: a ring that takes the last of the address space would leave
nothing to the program, which runs on epoll in the same place. Whoever makes a ring holds a
mapping of that size meanwhile, and where both do not fit there is no ring.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from uring_trio import _kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
HAS_LIMITS = resource is not None

# Bytes. A ring with its buffers is 2.2 MiB, all that is mapped for a run 2.4.
RING_BYTES = 4 << 20
# The stack of one thread (8 MiB), and as much for what a program allocates at its start.
ROOM_BYTES = 16 << 20

# Bytes of the CQ of the largest ring there is, 65,536 cqes: limits below can be tried.
LARGEST_CQ_BYTES = 1 << 20
LARGEST_CQ_ENTRIES = 1 << 16

# What several rings are charged on kernels that count them: 256 sqes, 4,096 cqes, buffer
# rings. Eight of them, one a thread, are a modest program.
MEMLOCK_ADVICE_BYTES = 64 << 20

CAP_IPC_LOCK = 14
ALL_USERS = "0 0 4294967295"  # /proc/self/uid_map of the first user namespace

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")

Cause = tuple[str, str, str]  # as in `_remedies`: cause, reason, remedy


@contextlib.contextmanager
def room_for_the_program(more: int = 0) -> Iterator[None]:
    """Hold the address space that a program needs beside a ring, and *more* bytes.

    Raises:
      OSError: there is not so much.
    """
    if not HAS_LIMITS:
        yield
        return
    try:
        held = private_mapping(ROOM_BYTES + more, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as exc:
        reason = f"keep {ROOM_BYTES >> 20} MiB for the program: {os.strerror(exc.errno or 0)}"
        raise OSError(exc.errno, reason) from None
    with held:
        yield


def private_mapping(size: int, protection: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)


def can_map(size: int, protection: int) -> bool:
    try:
        private_mapping(size, protection).close()
    except (OSError, MemoryError):
        return False
    return True


def whose() -> Cause:
    """Which limit it was, to be asked when memory for a ring was refused just now."""
    if not can_map(ROOM_BYTES + RING_BYTES, mmap.PROT_READ | mmap.PROT_WRITE):
        return no_address_space()
    counted = counts_rings()
    if counted:
        return too_little_locked_memory()
    cgroup = full_cgroup()
    if cgroup is not None:
        return (
            "memory cgroup",
            f"the memory cgroup {cgroup} ({looked_at()})",
            "Give it more memory: MemoryMax= of a systemd unit, --memory of a container.",
        )
    if counted is None:
        return (
            "memory",
            (
                "other rings of this user may have used up what it may lock in memory, if this "
                "kernel counts rings as that; or the kernel has no memory; which of them is not "
                f"known ({looked_at()})"
            ),
            f"Free memory, and try a larger limit: {memlock_advice()}",
        )
    return "memory", f"the kernel has no memory for a ring ({looked_at()})", "Free memory."


def looked_at() -> str:
    """What was found here, for the end of a reason."""
    memlock = in_kib(soft_limit("RLIMIT_MEMLOCK"))
    facts = [f"RLIMIT_MEMLOCK is {memlock}", f"RLIMIT_AS is {in_kib(soft_limit('RLIMIT_AS'))}"]
    may_lock = can_lock_all()
    if may_lock:
        facts[0] += ", of which this process is free"
    if may_lock is None:
        facts.append("/proc cannot be read")
    return ", ".join(facts)


# ---- address space -----------------------------------------------------------------------


def no_address_space() -> Cause:
    """No mapping of the size can be made. RLIMIT_AS counts all, RLIMIT_DATA what is writable."""
    needed = (ROOM_BYTES + RING_BYTES) >> 20
    mapped = field_of(PROC / "self" / "status", r"VmSize:\s*(\d+) kB")
    has = f", and {int(mapped) >> 10} MiB are in use" if mapped is not None else ""
    what = f"a ring and what the program needs beside it take {needed} MiB"
    limits = ("RLIMIT_AS", "RLIMIT_DATA")
    address_space, data = (soft_limit(name) for name in limits)
    if not can_map(ROOM_BYTES + RING_BYTES, mmap.PROT_READ):
        if address_space < 0:
            reason = f"{what} of address space, and no mapping of that size can be made{has}"
            return "address space", reason, "Free memory, or raise vm.max_map_count."
        return (
            "RLIMIT_AS",
            f"{what} of address space (RLIMIT_AS is {in_kib(address_space)}{has})",
            "Raise it: ulimit -v unlimited, or LimitAS=infinity in a systemd unit.",
        )
    if data >= 0:
        return (
            "RLIMIT_DATA",
            f"{what} of data (RLIMIT_DATA is {in_kib(data)})",
            "Raise it: ulimit -d unlimited, or LimitDATA=infinity in a systemd unit.",
        )
    overcommit = field_of(PROC / "sys" / "vm" / "overcommit_memory", r"(\d)")
    return (
        "overcommit",
        (
            f"{what}, and the kernel promises no more memory "
            f"(vm.overcommit_memory is {overcommit or 'not known'})"
        ),
        "Free memory, or raise vm.overcommit_ratio.",
    )


# ---- locked memory -----------------------------------------------------------------------


def counts_rings() -> bool | None:
    """Whether this kernel counts this process's rings against RLIMIT_MEMLOCK.

    None: the limit is larger than any ring, so that it cannot be tried.
    """
    limit = soft_limit("RLIMIT_MEMLOCK")
    if limit < 0 or can_lock_all():
        return False
    if limit >= LARGEST_CQ_BYTES:
        return None
    # Its first piece is refused, so nothing is charged; or the limit is none for rings.
    error = _kernel.try_ring_alone(1, LARGEST_CQ_ENTRIES)
    return {0: False, errno.ENOMEM: True}.get(error)


def too_little_locked_memory() -> Cause:
    soft = soft_limit("RLIMIT_MEMLOCK")
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return (
        "RLIMIT_MEMLOCK",
        (
            "the rings of one user share what that user may lock in memory "
            f"(RLIMIT_MEMLOCK is {in_kib(soft)}, at most {in_kib(hard)}, and a larger ring is refused)"
        ),
        f"Raise it: {memlock_advice()}",
    )


def memlock_advice() -> str:
    advice = MEMLOCK_ADVICE_BYTES >> 10
    return (
        f"ulimit -l {advice} (KiB), LimitMEMLOCK={advice}K in a systemd unit, or "
        f"--ulimit memlock={MEMLOCK_ADVICE_BYTES} for a container."
    )


def can_lock_all() -> bool | None:
    """Whether no limit on locked memory holds for this process; None: /proc does not tell."""
    capabilities = field_of(PROC / "thread-self" / "status", r"CapEff:\s*([0-9a-f]+)")
    users = field_of(PROC / "self" / "uid_map", r"\s*(\d+\s+\d+\s+\d+)")
    if capabilities is None or users is None:
        return None
    # The kernel asks for it in the first user namespace, whatever this one grants.
    return bool(int(capabilities, 16) >> CAP_IPC_LOCK & 1) and users.split() == ALL_USERS.split()


# ---- cgroups -----------------------------------------------------------------------------


def full_cgroup() -> str | None:
    """The memory cgroup of this process that has no room for a ring, in words; or None."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places = [(CGROUPS, "memory.max", "memory.current", r"file (\d+)")]
            places.append((CGROUPS / "unified", *places[0][1:]))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", r"total_cache (\d+)")
            places = [(CGROUPS / "memory", *names)]
        else:
            continue
        # In a container the path may be that of the host, which is not to be seen there.
        for root, limit_name, usage_name, cache in places:
            for group in [*Path(path.strip("/")).parents, Path(path.strip("/"))]:
                limit = field_of(root / group / limit_name, r"(\d+)")
                usage = field_of(root / group / usage_name, r"(\d+)")
                if limit is None or usage is None:
                    continue
                freed = int(field_of(root / group / "memory.stat", rf"(?m)^{cache}") or 0)
                if int(limit) - int(usage) + freed < RING_BYTES:
                    used = f"{int(usage) >> 20} of its {int(limit) >> 20} MiB"
                    return f"/{group} has used {used}" if str(group) != "." else f"has used {used}"
    return None


# ---- reading -----------------------------------------------------------------------------


def soft_limit(name: str) -> int:
    """This process's soft limit; -1 is unlimited."""
    return int(resource.getrlimit(getattr(resource, name))[0]) if HAS_LIMITS else -1


def field_of(path: Path, pattern: str) -> str | None:
    """What the pattern's group finds in a small file; None where it cannot be read."""
    try:
        match = re.search(pattern, path.read_text())
    except OSError:
        return None
    return match[1] if match else None


def in_kib(limit: int) -> str:
    return "unlimited" if limit < 0 else f"{limit >> 10} KiB"
