"""From an errno to its cause and a remedy, in words that name what was read on this machine.

One errno has several causes: EPERM is a sysctl, a seccomp filter or a security module.
Which of them it is can be read from /proc, so the text names the value that was found
and does not leave the user to guess. Where /proc is not there to be read, nobody guesses
either: the text says what is not known, and names a remedy for each cause that it may be.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from dataclasses import dataclass

from uring_trio import _shortage
from uring_trio._shortage import HAS_LIMITS, soft_limit

KERNEL_MINIMUM = "Linux 6.1"  # the first with every feature that is required

SYSCALLS = "io_uring_setup, io_uring_enter and io_uring_register"

# What was not readable, in place of a value.
UNKNOWN = "unknown"

# What a kernel or a filter answers that does not want a call, rather than not being able to.
DENIALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True)
class Failure:
    """Why something has no ring."""

    cause: str  # short and stable: one warning for each in a process
    reason: str
    remedy: str


def explain(error: int, stage: str) -> Failure:
    """What it means that *stage* failed with *error*, a positive errno."""
    if stage == "extension":
        return extension_missing()
    cause, reason, remedy = CAUSES.get(error, unexpected)()
    return Failure(cause, f"{stage}: {in_words(error)}: {reason}", remedy)


def in_words(error: int) -> str:
    # errorcode has one name for a number, and for this one not the kernel's.
    name = "EOPNOTSUPP" if error == errno.EOPNOTSUPP else errno.errorcode.get(error, str(error))
    return f"{os.strerror(error)} ({name})"


def ring_lost(error: int, call: str) -> Failure:
    """What it means that a ring which worked is refused *call* in the middle of its run."""
    filtered = seccomp_mode()
    if error == errno.EBADR:
        reason = "the kernel had no memory for a completion, so an operation never ends"
        remedy = "Free memory."
    elif error not in DENIALS:
        reason = f"the kernel refused a call of this run (Seccomp is {filtered})"
        if filtered not in ("0", UNKNOWN):
            reason += ", or a seccomp filter did that came into force meanwhile"
        remedy = "Please report this, if no filter did it; backend='epoll' does without."
    elif filtered in ("0", UNKNOWN):
        reason = (
            "it worked when this run began and is denied now, as by a seccomp filter or a security "
            f"module that came since; which of them is not known (Seccomp is {filtered})"
        )
        remedy = (
            "Have them in force before the run starts, so that it falls back, or allow "
            f"{SYSCALLS}; backend='epoll' does without."
        )
    else:
        reason = (
            "it worked when this run began and is denied now: a seccomp filter came into force "
            f"meanwhile (Seccomp is {filtered})"
        )
        remedy = (
            "Put the filter in force before the run starts, so that it falls back, or let it allow "
            f"{SYSCALLS}; backend='epoll' does without."
        )
    return Failure("ring lost", f"{call}: {in_words(error)}: {reason}", remedy)


def extension_missing() -> Failure:
    if not sys.platform.startswith("linux"):
        return Failure(
            "not Linux",
            f"io_uring is part of Linux, and this is {sys.platform}",
            "None here: trio's own manager serves this platform.",
        )
    return Failure(
        "no extension",
        "the C extension uring_trio._engine was not built or cannot be loaded",
        "Install uring_trio again with a C compiler and Python's headers, and read the "
        "build's messages.",
    )


def trio_unknown(missing: list[str], version: str) -> Failure:
    """This trio lacks private names that the hooks need."""
    return Failure(
        "unknown trio",
        f"trio {version} lacks the private names {', '.join(missing)}",
        "Use a trio release that this release of uring_trio was tested on, or a newer uring_trio.",
    )


def permission_denied() -> tuple[str, str, str]:
    disabled = read_sysctl("io_uring_disabled")
    filtered = seccomp_mode()
    read = f"kernel.io_uring_disabled is {disabled or 'not there'}, Seccomp is {filtered}"
    if disabled == "2":
        return (
            "disabled by sysctl",
            f"the administrator has switched io_uring off ({read})",
            "Run sysctl -w kernel.io_uring_disabled=0.",
        )
    if disabled == "1":
        group = read_sysctl("io_uring_group")
        return (
            "restricted by sysctl",
            f"io_uring is kept for CAP_SYS_ADMIN and for group {group} ({read})",
            "Run sysctl -w kernel.io_uring_disabled=0, or set kernel.io_uring_group to a group of yours.",
        )
    if UNKNOWN in (disabled, filtered):
        return (
            "denied, not known by what",
            (
                "the sysctl kernel.io_uring_disabled, a seccomp filter or a security module; which of "
                f"them is not known, because /proc does not tell ({read})"
            ),
            (
                "See that sysctl -n kernel.io_uring_disabled is 0, and whether the audit log has a "
                f"denial of io_uring. {allow_syscalls()}"
            ),
        )
    if filtered != "0":
        return "seccomp", f"a seccomp filter denies it, as containers do ({read})", allow_syscalls()
    return (
        "denied",
        f"a security module such as SELinux or AppArmor probably denies it ({read})",
        "Look for a denial of io_uring in the audit log (dmesg, ausearch), and allow it.",
    )


def no_such_syscall() -> tuple[str, str, str]:
    filtered = seccomp_mode()
    reason = "this kernel has no io_uring, or a sandbox such as gVisor or an emulator hides it"
    if filtered == UNKNOWN:
        reason += ", or a seccomp filter does"
    elif filtered != "0":
        reason = "a seccomp filter hides it, or this kernel has no io_uring"
    return (
        "no such syscall",
        f"{reason} (kernel {platform.release()}, Seccomp is {filtered})",
        f"Use {KERNEL_MINIMUM} or newer, built with CONFIG_IO_URING. {allow_syscalls()}",
    )


def not_supported() -> tuple[str, str, str]:
    reason = (
        "this kernel is too old for what is asked, or a sandbox refuses it "
        f"(kernel {platform.release()}, Seccomp is {seccomp_mode()})"
    )
    remedy = f"Use {KERNEL_MINIMUM} or newer. {allow_syscalls()}"
    return "not supported", reason, remedy


def too_many_files() -> tuple[str, str, str]:
    soft = soft_limit("RLIMIT_NOFILE")
    return (
        "RLIMIT_NOFILE",
        f"a ring needs a file descriptor beside those of the run (RLIMIT_NOFILE is {soft})",
        "Close files, or raise the limit with ulimit -n.",
    )


def no_answer() -> tuple[str, str, str]:
    return (
        "no answer",
        (
            "the operation was taken, and did not end in time; the machine was too busy for it, or a "
            "sandbox takes operations and does nothing"
        ),
        "The next run tries again; where this lasts, backend='epoll' does without the wait.",
    )


def not_now() -> tuple[str, str, str]:
    return (
        "not now",
        f"the kernel cannot at the moment (kernel {platform.release()})",
        "The next run tries again.",
    )


def unexpected() -> tuple[str, str, str]:
    return (
        "unexpected error",
        f"io_uring does not work as it should (kernel {platform.release()})",
        f"Use {KERNEL_MINIMUM} or newer. If this is one, please report it.",
    )


CAUSES = {
    errno.EPERM: permission_denied,
    errno.EACCES: permission_denied,
    errno.ENOSYS: no_such_syscall,
    errno.ENOMEM: _shortage.whose,
    errno.EINVAL: not_supported,
    errno.EOPNOTSUPP: not_supported,
    errno.EMFILE: too_many_files,
    errno.ENFILE: too_many_files,
    errno.ETIME: no_answer,
    errno.EAGAIN: not_now,
}


def allow_syscalls() -> str:
    return f"In a container, let the seccomp profile allow {SYSCALLS}."


def read_sysctl(name: str) -> str | None:
    """The value of kernel.*name*; None where there is no such sysctl (before 6.6)."""
    folder = _shortage.PROC / "sys" / "kernel"
    try:
        return (folder / name).read_text().strip()
    except FileNotFoundError:
        return None if (folder / "osrelease").exists() else UNKNOWN
    except OSError:
        return UNKNOWN


def seccomp_mode() -> str:
    """``Seccomp:`` of this thread: 0 none, 1 strict, 2 a filter; or ``"unknown"``."""
    return (
        _shortage.field_of(_shortage.PROC / "thread-self" / "status", r"(?m)^Seccomp:\s*(\d+)")
        or UNKNOWN
    )


def process_limits() -> dict[str, int]:
    """This process's soft limits that rings depend on; -1 is unlimited."""
    limits = {"memlock_bytes": "RLIMIT_MEMLOCK", "open_files": "RLIMIT_NOFILE"}
    return {name: soft_limit(limit) for name, limit in limits.items()} if HAS_LIMITS else {}
