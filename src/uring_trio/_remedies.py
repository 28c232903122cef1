"""From an errno to its cause and a remedy, in words that name what was read on this machine.

One errno has several causes: EPERM is a sysctl, a seccomp filter or a security module.
Which of them it is can be read from /proc, so the text names the value that was found
and does not leave the user to guess.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

KERNEL_MINIMUM = "Linux 6.1"  # the first with every feature that is required

SYSCALLS = "io_uring_setup, io_uring_enter and io_uring_register"

# What one ring is charged on kernels that count it: 256 sqes, 4,096 cqes, buffer rings.
# Eight of them, one a thread, are a modest program.
MEMLOCK_ADVICE_BYTES = 64 << 20


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
    # errorcode has one name for a number, and for this one not the kernel's.
    name = "EOPNOTSUPP" if error == errno.EOPNOTSUPP else errno.errorcode.get(error, str(error))
    cause, reason, remedy = CAUSES.get(error, unknown)()
    return Failure(cause, f"{stage}: {os.strerror(error)} ({name}): {reason}", remedy)


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
    if filtered not in ("0", "unknown"):
        return "seccomp", f"a seccomp filter denies it, as containers do ({read})", allow_syscalls()
    return (
        "denied",
        f"a security module such as SELinux or AppArmor probably denies it ({read})",
        "Look for a denial of io_uring in the audit log (dmesg, ausearch), and allow it.",
    )


def no_such_syscall() -> tuple[str, str, str]:
    filtered = seccomp_mode()
    reason = "this kernel has no io_uring, or a sandbox such as gVisor or an emulator hides it"
    if filtered not in ("0", "unknown"):
        reason = "a seccomp filter hides it, or this kernel has no io_uring"
    return (
        "no such syscall",
        f"{reason} (kernel {platform.release()}, Seccomp is {filtered})",
        f"Use {KERNEL_MINIMUM} or newer, built with CONFIG_IO_URING. {allow_syscalls()}",
    )


def too_little_memory() -> tuple[str, str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    advice = MEMLOCK_ADVICE_BYTES >> 10
    reason = (
        "the rings of one user share what that user may lock in memory "
        f"(RLIMIT_MEMLOCK is {in_kib(soft)}, at most {in_kib(hard)})"
    )
    remedy = (
        f"Raise it: ulimit -l {advice} (KiB), LimitMEMLOCK={advice}K in a systemd unit, or "
        f"--ulimit memlock={MEMLOCK_ADVICE_BYTES} for a container."
    )
    return "RLIMIT_MEMLOCK", reason, remedy


def not_supported() -> tuple[str, str, str]:
    reason = (
        "this kernel is too old for what is asked, or a sandbox refuses it "
        f"(kernel {platform.release()}, Seccomp is {seccomp_mode()})"
    )
    remedy = f"Use {KERNEL_MINIMUM} or newer. {allow_syscalls()}"
    return "not supported", reason, remedy


def too_many_files() -> tuple[str, str, str]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        "RLIMIT_NOFILE",
        f"a ring needs file descriptors, and there is none left (RLIMIT_NOFILE is {soft})",
        "Close files, or raise the limit with ulimit -n.",
    )


def unknown() -> tuple[str, str, str]:
    return (
        "unexpected error",
        f"io_uring does not work as it should (kernel {platform.release()})",
        f"Use {KERNEL_MINIMUM} or newer. If this is one, please report it.",
    )


CAUSES = {
    errno.EPERM: permission_denied,
    errno.EACCES: permission_denied,
    errno.ENOSYS: no_such_syscall,
    errno.ENOMEM: too_little_memory,
    errno.EINVAL: not_supported,
    errno.EOPNOTSUPP: not_supported,
    errno.EMFILE: too_many_files,
    errno.ENFILE: too_many_files,
}


def allow_syscalls() -> str:
    return f"In a container, let the seccomp profile allow {SYSCALLS}."


def read_sysctl(name: str) -> str | None:
    """The value of kernel.*name*, or None where there is no such sysctl (before 6.6)."""
    try:
        return Path("/proc/sys/kernel", name).read_text().strip()
    except OSError:
        return None


def seccomp_mode() -> str:
    """``Seccomp:`` of this process: 0 none, 1 strict, 2 a filter; or ``"unknown"``."""
    try:
        match = re.search(r"^Seccomp:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else "unknown"


def in_kib(limit: int) -> str:
    return "unlimited" if limit < 0 else f"{limit >> 10} KiB"


def process_limits() -> dict[str, int]:
    """This process's soft limits that rings depend on; -1 is unlimited."""
    if resource is None:
        return {}
    return {
        "memlock_bytes": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
