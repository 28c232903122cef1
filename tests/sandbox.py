"""Places where io_uring is denied, made for one child process each.

``python sandbox.py HOW COMMAND ...`` makes such a place for itself and becomes COMMAND.
HOW is an errno's name, which io_uring_setup then answers; ``KILL``, which ends the process
at any io_uring call, as strict sandboxes do; or ``NONE``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

# The same on every architecture.
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427

# <linux/filter.h>, <linux/seccomp.h>, <linux/prctl.h>
BPF_LD_W_ABS, BPF_JEQ_K, BPF_JGE_K, BPF_JGT_K, BPF_RET_K = 0x20, 0x15, 0x35, 0x25, 0x06
SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
SECCOMP_RET_TRAP = 0x00030000
# <linux/seccomp.h>, struct seccomp_data: the number, the address behind the call, its arguments.
NUMBER_AT, ADDRESS_AT, ARGUMENTS_AT = 0, 8, 16
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2

CHILD_TIMEOUT_S = 50  # under pytest's own; on an idle machine the longest takes 10


class SockFilter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(SockFilter)))


def deny_io_uring(how: str, first: int = IO_URING_SETUP, last: int = IO_URING_REGISTER) -> None:
    """From here on io_uring calls of this thread and its children fail like this: all, or some."""
    action = SECCOMP_RET_KILL_PROCESS
    if how != "KILL":
        action = SECCOMP_RET_ERRNO | getattr(errno, how)
    install_filter(
        SockFilter(BPF_LD_W_ABS, 0, 0, NUMBER_AT),
        SockFilter(BPF_JGE_K, 0, 2, first),
        SockFilter(BPF_JGT_K, 1, 0, last),
        SockFilter(BPF_RET_K, 0, 0, action),
        SockFilter(BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW),
    )


def trap_calls(numbers: list[int], address: int, files: list[int]) -> None:
    """From here on these calls of this thread raise SIGSYS in place of being made.

    Args:
      numbers: of the system calls.
      address: where one may be made all the same: behind the instruction that does it.
      files: descriptors that may be used from anywhere.
    """
    allow = SockFilter(BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW)
    install_filter(
        SockFilter(BPF_LD_W_ABS, 0, 0, NUMBER_AT),
        *(SockFilter(BPF_JEQ_K, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        allow,
        SockFilter(BPF_LD_W_ABS, 0, 0, ARGUMENTS_AT),
        *(instruction for fd in files for instruction in (SockFilter(BPF_JEQ_K, 0, 1, fd), allow)),
        SockFilter(BPF_LD_W_ABS, 0, 0, ADDRESS_AT),  # its lower half, on x86-64
        SockFilter(BPF_JEQ_K, 0, 3, address & 0xFFFFFFFF),
        SockFilter(BPF_LD_W_ABS, 0, 0, ADDRESS_AT + 4),
        SockFilter(BPF_JEQ_K, 0, 1, address >> 32),
        allow,
        SockFilter(BPF_RET_K, 0, 0, SECCOMP_RET_TRAP),
    )


def install_filter(*instructions: SockFilter) -> None:
    program = (SockFilter * len(instructions))(*instructions)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(SockFprog(len(program), program)))


def prctl(option: int, second: int, third: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(second), third, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def limit_memlock(size_bytes: int) -> None:
    """Become an ordinary user who may lock no more memory than this."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size_bytes, size_bytes))
    if os.geteuid() == 0:
        # Rings are charged to the user, over all of its processes: take one of our own.
        user = 100_000 + os.getpid()
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def run(how: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command where io_uring is denied in this way."""
    environ = {k: v for k, v in os.environ.items() if k != "URING_TRIO_BACKEND"}
    return subprocess.run(
        [sys.executable, __file__, how, *command],
        env=environ | environment,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )


def run_python(
    how: str, code: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code where io_uring is denied in this way; it may import this module."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return run(how, sys.executable, "-c", code, *arguments, **{"PYTHONPATH": path} | environment)


if __name__ == "__main__":
    if sys.argv[1] != "NONE":
        deny_io_uring(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])
