"""Fail everywhere: each scenario, once for each of its calls and allocations that may fail.

Some times two of them fail in one run, or one fails where the run is cancelled. What is run is
`fail_everywhere`, in a process of its own for each subject. Of the calls that a scenario makes
most often only some fail here; all do in the long one, also several times in a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import builds
import fail_everywhere
import harness
import pytest
from fail_everywhere import AN_ERROR, BEGINNING, HARMFUL, NOT_REACHED, THE_RESULT
from marks import needs_ring
from scenarios import SCENARIOS

pytestmark = needs_ring

ENDS = (NOT_REACHED, AN_ERROR, THE_RESULT)
PROGRAM = str(Path(fail_everywhere.__file__))

#: What is run in one process.
SUBJECTS = {
    "streams": ("echo", "connects", "blocked senders", "tls", "drain"),
    "datagrams": ("datagrams", "full receiver", "passed descriptors"),
    "files": ("files", "anyio"),
    "guests": ("guest echo", "guest files", "guest server"),
    "servers": ("server tcp", "server large", "server tls", "server async", "server threads"),
    "servers that take over": ("server reload", "server reload threads"),
    "datagram servers": ("server datagrams", "server datagrams everywhere"),
}
# On an idle machine the longest takes 9 s.
TIMEOUT_S, LONG_TIMEOUT_S = 45 * harness.SLOWNESS, 1800

# Of each kind of failure that a scenario can have; of two failures in a run, drawn by seed; and
# of points at which the run is cancelled as well.
SAMPLE, PAIRS, CUT_OFF = 2, 4, 6
LONG_PAIRS = 100

# Failures that somebody hears of, wherever they are tried: no other way is left.
HEARD: tuple[str, ...] = (
    *("setup EMFILE", "setup EPERM", "enter EBADR", "register_op EINVAL", "mode ENOMEM"),
    *("shutdown ENOTCONN", "read EIO", "write EIO", "write EPIPE"),
    *("connect ENOMEM", "connect ECONNREFUSED"),
)
# Where a server takes over, a client comes again, as often as it has to, whatever its connection
# ended with; so no number of a shutdown is surely that of somebody else.
COMES_AGAIN, FORGIVEN = "server reload", ("shutdown ENOTCONN",)
# Calls without which, or with another way instead, a run has its result all the same; once.
OVERCOME = ("map", "allocate", "getsockopt", "sendto", "sendmsg", "recvfrom", "recvmsg")
# Of these trio's sockets make some, with the user's datagrams, and a failure of one is told him.
OF_DATAGRAMS = ("sendto", "sendmsg", "recvfrom", "recvmsg")
WITH_DATAGRAMS = ("datagrams", "datagram servers", "files")


def run(*arguments: str, timeout_s: float) -> dict[str, dict[str, int]]:
    """Run the program: it must find nothing.

    Returns:
      By kind of failure: how often it ended in which way.
    """
    ended = subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        env=builds.environment(fail_everywhere.VARIANT),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"{lines[-1:]} {ended.stderr}"
    found = json.loads(lines[-1])
    assert found["problems"] == []
    kinds: dict[str, dict[str, int]] = {}
    for kind_and_end, count in found["ends"].items():
        kind, _, end = kind_and_end.partition(": ")
        kinds.setdefault(kind, dict.fromkeys(ENDS, 0))[end] = count
    # Else nothing has failed, and nothing was tried.
    assert [kind for kind, ends in kinds.items() if sum(ends.values()) == ends[NOT_REACHED]] == []
    forgiven = FORGIVEN if any(name.startswith(COMES_AGAIN) for name in arguments) else ()
    heard = [kind for kind in HEARD if kind in kinds and kind not in forgiven]
    assert [kind for kind in heard if not kinds[kind][AN_ERROR]] == []
    return kinds


def test_each_scenario_has_its_subject() -> None:
    assert sorted(name for names in SUBJECTS.values() for name in names) == sorted(SCENARIOS)


@pytest.mark.timeout(TIMEOUT_S + 10)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_some_calls_and_most_allocations_fail(subject: str) -> None:
    kinds = run(
        *SUBJECTS[subject],
        *("--most", str(SAMPLE), "--pairs", str(PAIRS), "--cut-off", str(CUT_OFF)),
        timeout_s=TIMEOUT_S,
    )
    assert {kind for kind in HEARD if kind.split()[0] in BEGINNING} <= kinds.keys()
    # A server's client is not told why its accept waits, and it is served all the same.
    in_order = OVERCOME if "server" not in subject else (*OVERCOME, "accept4")
    told = {kind for kind, ends in kinds.items() if ends[AN_ERROR]}
    users = {f"{call} {error}" for call in OF_DATAGRAMS for error in HARMFUL[call]}
    not_overcome = told - users if subject in WITH_DATAGRAMS else told
    assert [kind for kind in not_overcome if kind.split()[0] in in_order] == []
    if subject == "datagrams" and harness.FAST_WAYS:
        assert users & kinds.keys() <= told
    if "accept4 EMFILE" in kinds and "server" not in subject:
        assert {f"accept4 {error}" for error in HARMFUL["accept4"]} <= told


@pytest.mark.long
@pytest.mark.timeout(LONG_TIMEOUT_S)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_each_call_fails(name: str, times: int) -> None:
    run(name, "--times", str(times), timeout_s=LONG_TIMEOUT_S)


@pytest.mark.long
@pytest.mark.timeout(LONG_TIMEOUT_S)
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_fail_or_one_and_a_cancel(name: str) -> None:
    more = ("--pairs", str(LONG_PAIRS), "--cut-off", str(LONG_PAIRS))
    run(name, "--most", "1", *more, timeout_s=LONG_TIMEOUT_S)
