"""Which backend a run gets and why: the report, the environment, and places that deny io_uring."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import sandbox
import trio
from marks import needs_ring

import uring_trio
from uring_trio import _hooks, _kernel, _probe, _remedies, _shortage

TESTS = Path(__file__).parent

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


class Obstacle:
    """Stands between us and the kernel, and can be taken away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int, stage: str) -> None:
        self.there = True
        self.asked = 0
        ask = _kernel.probe_kernel

        def probe_kernel(sizes: _kernel.RingSizes | None = None) -> _kernel.KernelProbe:
            self.asked += 1
            return _kernel.KernelProbe(error, stage) if self.there else ask(sizes)

        monkeypatch.setattr(_kernel, "probe_kernel", probe_kernel)
        # What this process knows already does not count, nor what is found here later.
        monkeypatch.setattr(_probe, "_state", _probe.ProcessState())


async def backend_of_this_run() -> str:
    return str(harness.io_statistics().backend)


@needs_ring
@pytest.mark.parametrize("installed", [False, True])
def test_refresh_sees_that_an_obstacle_is_gone_and_that_it_is_back(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    obstacle = Obstacle(monkeypatch, errno.EPERM, "io_uring_setup")
    run = trio.run if installed else uring_trio.run
    if installed:
        obstacle.there = False
        uring_trio.install()
    try:
        for backend in ("epoll", "io_uring", "epoll", "io_uring"):
            obstacle.there = backend == "epoll"
            report = uring_trio.probe(refresh=True)
            assert report.backend == uring_trio.probe().backend == backend
            assert (report.reason is None) == (report.remedy is None) == (backend == "io_uring")
            assert any("EPERM" in problem for problem in report.problems) == (backend == "epoll")
            assert run(backend_of_this_run) == backend
    finally:
        uring_trio.uninstall()


@needs_ring
def test_refresh_inside_a_run_counts_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = Obstacle(monkeypatch, errno.EPERM, "io_uring_setup")

    async def main() -> uring_trio.ProbeReport:
        obstacle.there = False
        return uring_trio.probe(refresh=True)

    report = uring_trio.run(main)
    assert report.backend == "epoll"
    assert "EPERM" in str(report.reason)  # why this run is where it is
    assert uring_trio.probe().backend == uring_trio.run(backend_of_this_run) == "io_uring"


@needs_ring
def test_lasting_failure_is_not_asked_again_without_refresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    obstacle = Obstacle(monkeypatch, errno.EPERM, "io_uring_setup")
    uring_trio.probe()
    obstacle.there = False
    assert uring_trio.probe().backend == uring_trio.run(backend_of_this_run) == "epoll"
    assert obstacle.asked == 1


@needs_ring
@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (errno.ETIME, "receive into a provided buffer"),
        (errno.ETIME, "async cancel"),
        (errno.EMFILE, "make a socket pair"),
        (errno.ENFILE, "io_uring_setup"),
        (errno.ENOMEM, "register buffer ring"),
        (errno.EAGAIN, "io_uring_setup"),
    ],
)
def test_passing_failure_falls_back_and_is_forgotten_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, error: int, stage: str
) -> None:
    obstacle = Obstacle(monkeypatch, error, stage)
    # No ring without proof that one works, also where making it would succeed.
    assert uring_trio.run(backend_of_this_run) == "epoll"
    report = uring_trio.probe()
    assert report.backend == "epoll"
    assert stage in str(report.reason)
    assert "please report" not in str(report.remedy)
    with pytest.raises(uring_trio.UringUnavailable, match=stage):
        uring_trio.run(backend_of_this_run, backend="io_uring")
    obstacle.there = False
    assert uring_trio.run(backend_of_this_run) == "io_uring"
    assert uring_trio.probe().backend == "io_uring"


@needs_ring
def test_pause_longer_than_the_bound_of_each_step_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time of each step is over before it begins, as when the process was stopped."""
    monkeypatch.setattr(_kernel, "PROBE_TIMEOUT_NS", 0)
    assert uring_trio.probe(refresh=True).backend == "io_uring"


# Stopped at random moments, each time for longer than a step of the probe may take.
STOPPED_OFTEN = """
import os, subprocess, sys, uring_trio
stopper = subprocess.Popen([sys.executable, "-c", '''
import os, signal, sys, time
for _ in range(6):
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
    time.sleep(0.15)
    os.kill(int(sys.argv[1]), signal.SIGCONT)
    time.sleep(0.02)
''', str(os.getpid())])
found = set()
while stopper.poll() is None:
    found.add(uring_trio.probe(refresh=True).reason)
print(found)
"""


@needs_ring
def test_process_that_is_stopped_while_it_probes_finds_the_ring() -> None:
    done = sandbox.run_python("NONE", STOPPED_OFTEN)
    assert (done.stdout, done.stderr) == ("{None}\n", "")


@needs_ring
def test_failure_of_a_run_is_what_the_next_question_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sysctl, say, that was changed after the kernel had been asked."""
    obstacle = Obstacle(monkeypatch, errno.EPERM, "io_uring_setup")
    obstacle.there = False
    assert uring_trio.probe().backend == "io_uring"

    def refuse(manager: object, ring: object) -> None:
        raise OSError(errno.EPERM, "io_uring_setup: Operation not permitted")

    monkeypatch.setattr(_hooks, "_make_ring", refuse)
    obstacle.there = True
    assert uring_trio.run(backend_of_this_run) == "epoll"
    assert uring_trio.probe().backend == "epoll"


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


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_without_proc_nobody_guesses_who_denied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int
) -> None:
    monkeypatch.setattr(_shortage, "PROC", tmp_path)
    failure = _remedies.explain(error, "io_uring_setup")
    assert "Seccomp is unknown" in failure.reason
    assert "seccomp filter" in failure.reason
    for guess in ("probably", "has switched io_uring off", "denies it"):
        assert guess not in failure.reason
    assert "let the seccomp profile allow" in failure.remedy
    if error != errno.ENOSYS:
        for possible in ("kernel.io_uring_disabled", "security module", "is not known"):
            assert possible in failure.reason
        assert "audit log" in failure.remedy
        assert "sysctl" in failure.remedy


def make_proc(proc: Path) -> None:
    """As much of /proc as is looked at: a kernel that has the sysctl, and no filter."""
    (proc / "sys" / "kernel").mkdir(parents=True)
    (proc / "sys" / "kernel" / "osrelease").write_text("6.18\n")
    (proc / "sys" / "kernel" / "io_uring_disabled").write_text("0\n")
    (proc / "thread-self").mkdir()
    (proc / "thread-self" / "status").write_text("Name:\tx\nSeccomp:\t0\n")


@pytest.mark.parametrize("hidden", ["sys", "thread-self"])
def test_half_of_proc_is_not_enough_to_tell_who_denied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: str
) -> None:
    make_proc(tmp_path)
    monkeypatch.setattr(_shortage, "PROC", tmp_path)
    assert "probably" in _remedies.explain(errno.EPERM, "io_uring_setup").reason
    (tmp_path / hidden).rename(tmp_path / "hidden")
    assert "is not known" in _remedies.explain(errno.EPERM, "io_uring_setup").reason


def test_sysctl_that_older_kernels_lack_is_absent_and_not_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_proc(tmp_path)
    (tmp_path / "sys" / "kernel" / "io_uring_disabled").unlink()
    monkeypatch.setattr(_shortage, "PROC", tmp_path)
    assert _remedies.read_sysctl("io_uring_disabled") is None
    assert "io_uring_disabled is not there" in _remedies.explain(errno.EPERM, "x").reason


def test_unexpected_errno_is_explained_with_its_name_and_the_step() -> None:
    failure = _remedies.explain(errno.EIO, "register buffer ring")
    assert "register buffer ring: Input/output error (EIO)" in failure.reason
    assert failure.remedy


ASKED_IN_A_HANDLER = """
import signal, uring_trio
from uring_trio import _kernel
ask = _kernel.probe_kernel

def interrupted(*args):
    _kernel.probe_kernel = ask
    signal.raise_signal(signal.SIGUSR1)
    return ask(*args)

_kernel.probe_kernel = interrupted
signal.signal(signal.SIGUSR1, lambda *_: print(uring_trio.probe().backend))
print(uring_trio.probe().backend)
"""
ANSWER_TIMEOUT_S = 20


def test_handler_may_ask_while_its_own_thread_is_asking() -> None:
    """Both are answered, and alike."""
    command = [sys.executable, "-c", ASKED_IN_A_HANDLER]
    printed = subprocess.run(
        command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=True
    )
    inner, outer = printed.stdout.split()
    assert inner == outer


PROMISED_AND_GIVEN = """
import sys
sys.path.insert(0, sys.argv[1])
import sandbox, trio, uring_trio

async def backend():
    return trio.lowlevel.current_statistics().io_statistics.backend

sandbox.limit_memlock(int(sys.argv[2]) << 10)
promised = uring_trio.probe(refresh=True).backend
print(promised, uring_trio.run(backend))
"""


# 24 KiB: not even the smallest. 48: the first ring that fits leaves no room for its buffer
# rings, so it takes a smaller one, and patience until the kernel has taken the first apart.
@needs_ring
@pytest.mark.parametrize("kib", [24, 32, 48, 64])
def test_promise_is_kept_under_a_small_memlock(kib: int) -> None:
    """What `probe()` promises outside of runs is what a run gets."""
    command = [sys.executable, "-c", PROMISED_AND_GIVEN, str(Path(__file__).parent), str(kib)]
    printed = subprocess.run(
        command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=True
    )
    promised, given = printed.stdout.split()
    assert promised == given
