"""CPU affinity and priority of workers: each thread its own, and refusals are warnings."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import gain_tools
import pytest
from gain_tools import LOOPBACK, Recorder, server_in_thread, wait_until
from marks import ON_RING

from uring_trio import gain
from uring_trio.gain._config import usable_cpus
from uring_trio.gain._surroundings import NICENESS, placed

pytestmark = ON_RING

NO_CPU = 1023  # the last that glibc's set has; no machine of ours has so many


def my_niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def may_hurry() -> bool:
    """Whether this user may raise priorities; tried in a process of its own."""
    text = "import os; os.setpriority(os.PRIO_PROCESS, 0, -19)"
    return not subprocess.call([sys.executable, "-c", text], stderr=subprocess.DEVNULL)


def test_each_worker_has_a_cpu_of_its_own() -> None:
    cpus = usable_cpus()
    found: dict[int, set[int]] = {}

    def on_accept(conn: gain.Conn) -> None:
        found[threading.get_ident()] = os.sched_getaffinity(0)

    workers = len(cpus)
    handler = Recorder(on_accept=on_accept)
    with server_in_thread(handler, workers=workers, cpu_affinity=True) as server:
        for count in range(1, workers + 1):
            with gain_tools.connect(server):
                wait_until(lambda: len(found) == count)  # noqa: B023
    assert sorted(found.values(), key=sorted) == [{cpu} for cpu in cpus]
    assert usable_cpus() == cpus


def test_worker_in_the_callers_thread_gives_it_back_as_it_was() -> None:
    before = usable_cpus(), my_niceness()
    found = []

    def on_start(server: gain.Server) -> None:
        found.append((usable_cpus(), my_niceness()))
        server.async_shutdown()

    handler = Recorder(on_start=on_start)
    hurried = may_hurry()
    gain.listen_and_serve(LOOPBACK, handler, workers=1, cpu_affinity=True, process_priority=hurried)
    assert found == [(before[0][:1], NICENESS if hurried else before[1])]
    assert (usable_cpus(), my_niceness()) == before


def test_affinity_that_is_refused_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    before = usable_cpus()
    with placed(3, gain.Config(cpu_affinity=True), [NO_CPU]):
        assert usable_cpus() == before
    assert caplog.messages == [
        "CPU affinity refused: worker 3 cannot run on CPU 1023: [Errno 22] Invalid argument"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="another user cannot be tried")
def test_priority_that_is_refused_is_a_warning_and_the_server_runs() -> None:
    text = """
    import os, sys
    from uring_trio import gain

    class Handler(gain.EventHandler):
        def on_start(self, server):
            print("running", flush=True)
            server.async_shutdown()

    def run(**options):
        gain.listen_and_serve("tcp://127.0.0.1:0", Handler(), workers=1, **options)

    run()  # imports what the other user may have no right to read
    os.setresuid(65534, 65534, 65534)
    run(process_priority=True)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    assert process.stdout == "running\n" * 2, process.stderr
    kept = os.getpriority(os.PRIO_PROCESS, 0)  # make test may be run with another than 0
    assert f"process priority refused: worker 0 keeps {kept}: [Errno 13]" in process.stderr
