"""Which backend a run gets and why: the report, the environment, and places that deny io_uring."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
from pathlib import Path

import harness
import pytest
import sandbox
import trio

import uring_trio
from uring_trio import _probe, _remedies

TESTS = Path(__file__).parent

needs_ring = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)

# What a program sees: two runs by default, then one that insists.
TWO_RUNS_AND_A_DEMAND = """
import json, logging, trio, uring_trio
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
async def main():
    with trio.move_on_after(0.01):
        await trio.sleep_forever()
    return trio.lowlevel.current_statistics().io_statistics.backend
seen = {"runs": [uring_trio.run(main), uring_trio.run(main)]}
try:
    uring_trio.run(main, backend="io_uring")
except uring_trio.UringUnavailable as exc:
    seen |= {"reason": exc.reason, "remedy": exc.remedy}
try:
    uring_trio.install(backend="io_uring")
except uring_trio.UringUnavailable as exc:
    seen["install"] = exc.reason
seen["installed_auto"] = uring_trio.install().backend
seen["plain_run"] = trio.run(main)
uring_trio.uninstall()
print(json.dumps(seen))
"""


def report_in_a_run(backend: str) -> uring_trio.ProbeReport:
    async def main() -> uring_trio.ProbeReport:
        return uring_trio.probe()

    return harness.run_raw(backend, main)


@needs_ring
def test_report_on_the_ring_has_all_facts_and_no_complaint() -> None:
    report = uring_trio.probe()
    assert (report.backend, report.reason, report.remedy) == ("io_uring", None, None)
    assert os.uname().release in report.kernel
    assert {"SINGLE_ISSUER", "DEFER_TASKRUN"} <= set(report.setup_flags)
    assert {"NODROP", "EXT_ARG"} <= set(report.features)
    assert {"recv", "send", "accept", "connect", "async_cancel"} <= set(report.opcodes)
    assert report.limits["sq_entries"] > 0
    assert report.trio_version == trio.__version__


def test_report_is_frozen_and_goes_through_json() -> None:
    report = uring_trio.probe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.backend = "epoll"  # type: ignore[misc]
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    assert list(report.as_dict()) == [field.name for field in dataclasses.fields(report)]


def test_kernel_is_asked_once_and_again_on_refresh_and_after_fork() -> None:
    uring_trio.probe()
    asked = _probe.kernel_probe()
    uring_trio.probe()
    assert _probe.kernel_probe() is asked
    child = os.fork()
    if child == 0:
        try:
            uring_trio.probe()
            os._exit(0 if _probe.kernel_probe() is not asked else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    uring_trio.probe(refresh=True)
    assert _probe.kernel_probe() is not asked


@needs_ring
def test_report_in_a_run_tells_of_that_run() -> None:
    assert report_in_a_run("io_uring").reason is None

    plain = report_in_a_run("epoll")
    assert plain.backend == "epoll"
    assert "not installed" in str(plain.reason)

    async def main() -> uring_trio.ProbeReport:
        return uring_trio.probe()

    asked_for = uring_trio.run(main, backend="epoll")
    assert (asked_for.backend, asked_for.reason) == ("epoll", "epoll was asked for")
    assert uring_trio.probe().backend == "io_uring"


def test_bad_environment_variable_is_quoted_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "iouring")
    for function in (uring_trio.probe, uring_trio.install, lambda: uring_trio.run(trio.sleep, 0)):
        with pytest.raises(ValueError, match="'iouring'"):
            function()


@needs_ring
@pytest.mark.parametrize("value", ["", "auto", "io_uring"])
def test_environment_stands_in_for_auto(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", value)

    async def main() -> str:
        return str(harness.io_statistics().backend)

    assert uring_trio.run(main) == "io_uring"
    assert uring_trio.run(main, backend="epoll") == "epoll"


def test_environment_epoll_wins_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "epoll")

    async def main() -> uring_trio.ProbeReport:
        return uring_trio.probe()

    report = uring_trio.run(main)
    assert report.backend == "epoll"
    assert report.reason == "the environment variable URING_TRIO_BACKEND is 'epoll'"
    assert report.opcodes == ()
    for demand in (uring_trio.run, uring_trio.start_guest_run):
        with pytest.raises(uring_trio.UringUnavailable, match="URING_TRIO_BACKEND"):
            demand(main, backend="io_uring")
    with pytest.raises(uring_trio.UringUnavailable, match="URING_TRIO_BACKEND"):
        uring_trio.install(backend="io_uring")


def test_environment_demanding_the_ring_makes_auto_fail_where_it_is_denied() -> None:
    code = "import trio, uring_trio; uring_trio.run(trio.sleep, 0)"
    done = sandbox.run_python("EPERM", code, URING_TRIO_BACKEND="io_uring")
    assert done.returncode == 1
    assert "UringUnavailable: io_uring is not available" in done.stderr


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("EPERM", ["seccomp filter", "Seccomp is 2", "kernel.io_uring_disabled is"]),
        ("ENOSYS", ["seccomp filter", "Seccomp is 2"]),
        ("EOPNOTSUPP", ["sandbox", os.uname().release]),
        ("EINVAL", ["too old", os.uname().release]),
        ("ENOMEM", ["RLIMIT_MEMLOCK is"]),
    ],
)
def test_where_denied_auto_falls_back_with_one_warning_and_a_demand_fails(
    how: str, words: list[str]
) -> None:
    done = sandbox.run_python(how, TWO_RUNS_AND_A_DEMAND)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["runs"] == ["epoll", "epoll"]
    assert seen["installed_auto"] == seen["plain_run"] == "epoll"
    for word in [how, "io_uring_setup", os.strerror(getattr(errno, how)), *words]:
        assert word in seen["reason"]
    assert seen["install"] == seen["reason"]
    assert seen["remedy"]
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("uring_trio WARNING no io_uring")
    assert seen["reason"] in warning
    assert seen["remedy"] in warning


def test_filter_that_kills_does_kill() -> None:
    """The control of the next test."""
    done = sandbox.run_python("KILL", "import uring_trio; uring_trio.probe()")
    assert done.returncode == -signal.SIGSYS


def test_where_io_uring_kills_the_environment_keeps_us_from_asking() -> None:
    done = sandbox.run_python("KILL", TWO_RUNS_AND_A_DEMAND, URING_TRIO_BACKEND="epoll")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["runs"] == ["epoll", "epoll"]
    assert "URING_TRIO_BACKEND" in seen["reason"]
    assert done.stderr == ""  # asked for, so no warning
    doctor = sandbox.run(
        "KILL", sys.executable, "-m", "uring_trio", "doctor", URING_TRIO_BACKEND="epoll"
    )
    assert doctor.returncode == 1, doctor.stderr


def test_trio_without_a_private_name_is_a_reason_to_fall_back() -> None:
    lose_a_name = "import trio; del trio._socket._SocketType._resolve_address_nocp\n"
    done = sandbox.run_python("NONE", lose_a_name + TWO_RUNS_AND_A_DEMAND)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["runs"] == ["epoll", "epoll"]
    assert "trio._socket._SocketType._resolve_address_nocp" in seen["reason"]
    assert trio.__version__ in seen["reason"]
    assert len(done.stderr.splitlines()) == 1


def test_missing_extension_is_a_reason_to_fall_back() -> None:
    lose_extension = "import sys; sys.modules['uring_trio._engine'] = None\n"
    done = sandbox.run_python("NONE", lose_extension + TWO_RUNS_AND_A_DEMAND)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["runs"] == ["epoll", "epoll"]
    assert "uring_trio._engine" in seen["reason"]
    assert len(done.stderr.splitlines()) == 1


MANY_RUNS_AT_ONCE = """
import json, logging, sys, threading, trio, uring_trio
import uring_trio._hooks  # this user may not read our files later
sys.path.insert(0, sys.argv[1])
import sandbox
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
sandbox.limit_memlock(64 << 10)
together, reports = threading.Barrier(24), []
async def main():
    reports.append(uring_trio.probe().as_dict())
    await trio.to_thread.run_sync(together.wait)
threads = [threading.Thread(target=uring_trio.run, args=(main,)) for _ in range(24)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(reports))
"""


@needs_ring
def test_small_memlock_is_decided_for_each_run() -> None:
    """The rings of one user share RLIMIT_MEMLOCK, so the Nth may fail where the first worked."""
    done = sandbox.run("NONE", sys.executable, "-c", MANY_RUNS_AT_ONCE, str(TESTS))
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    print([report["backend"] for report in reports])
    assert len(reports) == 24
    fallen_back = [report for report in reports if report["backend"] == "epoll"]
    if not fallen_back:
        pytest.skip("this kernel does not count rings against RLIMIT_MEMLOCK")
    for report in fallen_back:
        assert "RLIMIT_MEMLOCK is 64 KiB" in report["reason"]
        assert "ulimit -l" in report["remedy"]
    assert len(done.stderr.splitlines()) == 1  # one warning, whichever step failed first


@pytest.mark.parametrize(
    ("sysctl", "seccomp", "reason", "remedy"),
    [
        ("2", "0", "io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0"),
        ("1", "0", "CAP_SYS_ADMIN", "kernel.io_uring_group"),
        ("0", "2", "seccomp filter", "io_uring_setup, io_uring_enter"),
        (None, "0", "SELinux", "audit log"),
    ],
)
def test_operation_not_permitted_is_told_apart_by_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch, sysctl: str | None, seccomp: str, reason: str, remedy: str
) -> None:
    # The sysctl belongs to the whole machine, so no test can set it.
    monkeypatch.setattr(_remedies, "read_sysctl", lambda name: sysctl)
    monkeypatch.setattr(_remedies, "seccomp_mode", lambda: seccomp)
    failure = _remedies.explain(errno.EPERM, "io_uring_setup")
    assert reason in failure.reason
    assert remedy in failure.remedy


def test_unexpected_errno_is_explained_with_its_name_and_the_step() -> None:
    failure = _remedies.explain(errno.EIO, "register buffer ring")
    assert "register buffer ring: Input/output error (EIO)" in failure.reason
    assert failure.remedy
