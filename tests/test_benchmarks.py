"""``python -m benchmarks``: every scenario works, what it reports is true, and the page has it all.

A scenario is run here on a few connections for a moment: that it works, and not what it costs.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import machine_speed
import pytest
from benchmarks import __main__ as command_line
from benchmarks import exchange, generated, observe, own_work, page, report, running, system_calls
from benchmarks.comparison import Bar, Comparison, take_turns
from benchmarks.exchange import Spoken
from benchmarks.generated import Generated
from benchmarks.groups import GROUPS, losses
from benchmarks.measurement import METRICS, Measurement
from benchmarks.peers import (
    AGAIN,
    GAIN,
    RING,
    STOCK,
    UVLOOP_PROTOCOL,
    Peer,
    find,
    of_tree,
    stream_servers,
    tree_missing,
)
from benchmarks.progress import Lines
from benchmarks.results import Results
from benchmarks.running import Options
from benchmarks.scenarios import IDLE, NAMES, SCENARIOS, Scenario, peers_of_bars

ROOT = Path(__file__).resolve().parents[1]
# A server that gets no CPU meanwhile has done nothing, on a machine that has other work.
SECONDS = 0.05 * machine_speed.slowness()
CONNECTIONS = 3


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warm-up, and where the programs are to be run."""
    monkeypatch.chdir(ROOT)
    for module in (generated, exchange, own_work):
        monkeypatch.setattr(module, "WARMUP_S", 0.01)


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots: matplotlib keeps the files of its fonts open."""
    monkeypatch.setattr(page, "draw", lambda _scenarios, _directory: {})


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass for system calls, which doubles what a short run takes."""
    monkeypatch.setattr(system_calls, "denied", lambda: "not in this test")


def scenario_named(name: str) -> Scenario:
    (found,) = [scenario for scenario in SCENARIOS if scenario.name == name]
    return found


def small(scenario: Scenario) -> Scenario:
    """The same with few connections."""
    load = scenario.load
    if isinstance(load, Generated):
        load = replace(load, connections=min(load.connections, CONNECTIONS), patience=1.0)
    elif isinstance(load, Spoken):
        load = replace(load, connections=min(load.connections, CONNECTIONS))
    return replace(scenario, load=load)


def check(measured: Measurement) -> None:
    """It worked, and what cannot be nothing is not."""
    assert measured.errors == 0
    assert measured.units > 0
    assert measured.elapsed_ns >= SECONDS * 1e9
    assert measured.cpu_ns > 0
    assert measured.peak_kib > 1000


# ---- every scenario ----------------------------------------------------------------------

# One of each load and service, by turns on the two that this is about. Those with a server of
# somebody else are in tests/ecosystem, the one with wrk in test_gain_benchmarks.py.
A_MOMENT = (
    ("64x64B", RING),
    ("8x1MiB", GAIN),
    ("bulk-in", RING),
    ("bulk-out", GAIN),
    ("bulk-out", RING),
    ("accept-byte-close", GAIN),
    ("accept-ask-close", RING),
    ("tls-64x64B", GAIN),
    ("udp-64x64B", RING),
    ("udp-64x64B", GAIN),
    ("unix-64x64B", RING),
    ("deadline-64x64B", RING),
    ("httpx-client", RING),
    ("to-thread-8", RING),
)


@pytest.mark.parametrize(("name", "program"), A_MOMENT)
def test_a_scenario_works_on_ours(name: str, program: str) -> None:
    if reason := harness.ring_denied():
        pytest.skip(reason)
    scenario = small(scenario_named(name))
    check(scenario.load.measure(find(scenario.peers, program), SECONDS))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_a_scenario_works_on_every_program(name: str) -> None:
    scenario = small(scenario_named(name))
    if reason := scenario.load.missing():
        pytest.skip(reason)
    tried = [peer for peer in scenario.peers if peer.missing() is None]
    assert tried
    for peer in tried:
        check(scenario.load.measure(peer, SECONDS))


@pytest.mark.long
@pytest.mark.parametrize("name", ["1000x64B", "1000x16KiB"])
def test_a_scenario_of_many_connections_is_served(name: str) -> None:
    if reason := harness.ring_denied():
        pytest.skip(reason)
    scenario = scenario_named(name)
    for program in (RING, GAIN):
        check(scenario.load.measure(find(scenario.peers, program), 1.0))


# ---- the tables --------------------------------------------------------------------------


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for scenario in SCENARIOS:
        names = [peer.name for peer in scenario.peers]
        assert len(set(names)) == len(names)
        assert {scenario.base, scenario.again} <= set(names)


def test_every_scenario_has_its_place_on_the_page() -> None:
    shown = [name for group in GROUPS for name in group.scenarios]
    assert sorted(shown) == sorted(scenario.name for scenario in SCENARIOS)


def test_both_sides_of_every_bar_take_part_and_one_of_them_twice() -> None:
    for scenario in SCENARIOS:
        names = {peer.name for peer in (*scenario.peers, *of_tree(scenario.peers, ROOT))}
        wanted = peers_of_bars(scenario)
        assert wanted <= names
        twice = {scenario.base: scenario.again, **AGAIN}
        if scenario.bars:
            assert any(twice.get(name) in wanted for name in wanted)


def test_ratios_are_to_one_that_takes_part() -> None:
    everybody, only_bars = Options(9, 1.0), Options(9, 1.0, only_bars=True)
    udp = scenario_named("udp-64x64B")
    assert running.base_of(udp, everybody) == (STOCK, "stock-again")
    assert running.base_of(udp, only_bars) == (UVLOOP_PROTOCOL, "uvloop-protocol-again")
    for scenario in SCENARIOS:
        if scenario.bars:
            names = {peer.name for peer in running.peers_of(scenario, only_bars)}
            assert set(running.base_of(scenario, only_bars)) <= names


def test_the_quick_look_fits_into_its_time() -> None:
    options = Options(command_line.QUICK_ROUNDS, command_line.QUICK_SECONDS, only_bars=True)
    quick = [scenario for scenario in SCENARIOS if scenario.is_quick]
    needed_s = sum(running.seconds_of(scenario, options) for scenario in quick)
    assert needed_s <= command_line.QUICK_BUDGET_S < 300


# ---- what is counted ---------------------------------------------------------------------


def test_system_calls_are_counted_exactly() -> None:
    if reason := system_calls.denied():
        pytest.skip(reason)
    with system_calls.counters(os.getpid()) as fds:
        before = system_calls.read(fds)
        for _ in range(1000):
            os.getppid()
        made = system_calls.read(fds) - before
    # Other threads of this process have theirs, and reading is one for each counter.
    assert 1000 + len(fds) <= made < 1100


def test_system_calls_of_a_server_are_those_of_its_messages() -> None:
    if reason := system_calls.denied():
        pytest.skip(reason)
    load = Generated("echo", 1, 64)
    measured = load.measure(find(stream_servers("echo"), STOCK), SECONDS, count_calls=True)
    assert measured.calls_per_unit is not None
    # At least a receive, a send and a wait; trio's epoll makes no more than a dozen.
    assert 3 <= measured.calls_per_unit < 12


def test_where_tracepoints_are_hidden_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(system_calls, "TRACEFS", (tmp_path,))
    system_calls.tracepoint.cache_clear()
    with (
        pytest.raises(system_calls.CannotCount, match="sys_enter"),
        system_calls.counters(os.getpid()),
    ):
        pass


# ---- what is made of it ------------------------------------------------------------------


def test_what_others_take_of_the_machine_is_told_apart_from_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By made-up clocks: of 10 s of two cores, 6 were somebody's, and 4.5 of these were ours."""
    ticks = os.sysconf("SC_CLK_TCK")
    stat = [
        # user, nice, system, idle, iowait, irq, softirq, steal
        (100, 0, 50, 1000, 0, 0, 0, 0),
        (103, 1, 51, 1012, 1, 0, 1, 1),
    ]
    times = [(1.0, 1.0, 10.0, 5.0, 0.0), (1.5, 1.0, 13.0, 6.0, 0.0)]

    def read_text(_path: Path) -> str:
        return f"cpu  {' '.join(str(each * ticks) for each in stat.pop(0))} 0 0\ncpu0 ...\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "times", lambda: times.pop(0))
    others = observe.Others()
    assert others.part() == pytest.approx((6 - 4.5) / 20)


def measurement(cpu_us: float, p99_us: float = 100.0) -> Measurement:
    """1,000 messages at so much CPU each."""
    return Measurement(
        units=1000,
        elapsed_ns=10**9,
        cpu_ns=round(cpu_us * 1e6),
        errors=0,
        p50_ns=50_000,
        p99_ns=round(p99_us * 1e3),
        peak_kib=20_000,
    )


def compare(cpu_us: dict[str, list[float]]) -> Comparison[Measurement]:
    reports = {name: [measurement(each) for each in rounds] for name, rounds in cpu_us.items()}
    return Comparison("64x64B", METRICS, reports, STOCK, AGAIN[STOCK], AGAIN)


def test_the_noise_of_a_bar_is_of_its_base_where_that_was_run_twice() -> None:
    found = compare(
        {
            "stock": [10.0] * 9,
            "stock-again": [11.0] * 9,
            "uvloop-protocol": [5.0] * 9,
            "uvloop-protocol-again": [5.1] * 9,
            "ring": [4.0] * 9,
            "uvloop": [6.0] * 9,
        }
    )
    noises: dict[str, Any] = {
        verdict.bar.base: (verdict.noise_of, verdict.noise and verdict.noise.median)
        for verdict in report.judge_all(
            found, RING, [Bar("cpu_us", base, 1.0) for base in (STOCK, UVLOOP_PROTOCOL, "uvloop")]
        )
    }
    assert noises == {
        STOCK: (STOCK, pytest.approx(1.1)),
        UVLOOP_PROTOCOL: (UVLOOP_PROTOCOL, pytest.approx(1.02)),
        "uvloop": (STOCK, pytest.approx(1.1)),
    }


@pytest.mark.parametrize(
    ("rounds", "again", "doubts"),
    [(9, 10.9, 0), (8, 10.9, 1), (9, 11.1, 1), (9, 8.9, 1), (3, 11.1, 2)],
)
def test_a_verdict_tells_what_it_cannot_settle(rounds: int, again: float, doubts: int) -> None:
    found = compare(
        {"ring": [5.0] * rounds, "stock": [10.0] * rounds, "stock-again": [again] * rounds}
    )
    (verdict,) = report.judge_all(found, RING, [Bar("cpu_us", STOCK, 0.6, stretch=0.4)])
    assert (verdict.word, len(verdict.doubts)) == ("met", doubts)
    assert "at most 0.6, better 0.4" in verdict.line()


def test_a_program_that_fails_is_left_out_with_the_reason() -> None:
    def measure(peer: Peer) -> Measurement:
        if peer.name == "b":
            raise RuntimeError("it broke")
        return measurement(1.0)

    left: dict[str, str] = {}
    peers = [Peer(name, "", "") for name in "abc"]
    reports = take_turns(peers, 2, measure, lambda _text: None, left)
    assert {name: len(each) for name, each in reports.items()} == {"a": 2, "c": 2}
    assert left == {"b": "it broke"}


def test_no_units_are_no_figure_and_no_division() -> None:
    nothing = Measurement(units=0, elapsed_ns=0, cpu_ns=5, errors=1)
    assert math.isnan(METRICS["cpu_us"](nothing))
    assert METRICS["per_second"](nothing) == 0
    assert replace(nothing, calls=3).calls_per_unit is None


# ---- another tree ------------------------------------------------------------------------


def test_a_tree_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    reason = tree_missing(tmp_path)
    assert reason is not None
    assert "no built tree" in reason


def test_ours_of_another_tree_runs_beside_ours() -> None:
    if reason := harness.ring_denied():
        pytest.skip(reason)
    scenario = small(scenario_named("64x64B"))
    peers = running.peers_of(scenario, Options(1, SECONDS, tree=ROOT))
    names = [peer.name for peer in peers]
    assert names[:2] == ["ring", "ring-before"]
    assert names.count("gain-before") == 1
    before = find(peers, "ring-before")
    assert before.environment()["PYTHONPATH"] == str(ROOT / "src")
    assert before.missing() is None
    check(scenario.load.measure(before, SECONDS))


# ---- the command -------------------------------------------------------------------------


@pytest.mark.usefixtures("unplotted")
def test_a_run_adds_to_the_results_and_makes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := harness.ring_denied():
        pytest.skip(reason)
    Results(tmp_path, {"1x64B": entry("1x64B", {"ring": [5.0], "stock": [10.0]})}).save(tmp_path)
    words = ["to-thread-1", "--rounds", "1", "--seconds", str(SECONDS), "--servers", "ring,stock"]
    command = [*words, "--results", str(tmp_path), "--against", str(ROOT)]
    assert command_line.main(command) == 0
    assert "to-thread-1: cpu_us of ring" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == ["1x64B", "to-thread-1"]
    new = found["to-thread-1"]
    assert list(new["programs"]) == ["ring", "ring-before", "stock"]
    assert new["rounds"] == 1
    assert new["command"].endswith("--results DIR --against TREE")
    if system_calls.denied() is None:
        assert all(each["calls_per_unit"] > 0 for each in new["programs"].values())
    text = (tmp_path / "benchmarks.md").read_text()
    assert "### 1x64B" in text
    assert "### to-thread-1" in text


@pytest.mark.usefixtures("unplotted", "uncounted")
def test_what_has_no_time_left_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "QUICK_BUDGET_S", 0.0)
    assert command_line.main(["--quick", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    quick = [scenario.name for scenario in SCENARIOS if scenario.is_quick]
    assert all(f"without {name}: no time is left" in printed for name in quick)
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "quick" / "benchmarks.md").exists()


def test_a_pattern_stands_for_several_and_an_unknown_name_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = command_line.make_parser()
    plan = command_line.make_plan(["hypercorn-*", "1x64B"], parser)
    assert plan.names == ("1x64B", "hypercorn-1", "hypercorn-8", "hypercorn-50")
    with pytest.raises(SystemExit) as exit_:
        command_line.make_plan(["65x64B"], parser)
    assert exit_.value.code == 2
    assert "no scenario is called 65x64B" in capsys.readouterr().err


def test_every_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)


def test_make_passes_names_and_quick_on() -> None:
    def made(*words: str) -> list[str]:
        command = ["make", "-n", "bench", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        (line,) = [line for line in done.stdout.splitlines() if "-m benchmarks" in line]
        return shlex.split(line.partition("-m benchmarks")[2])

    assert made() == []
    assert made("64x64B", "8x*") == ["64x64B", "8x*"]
    assert made("QUICK=1") == ["--quick"]
    assert made("idle", "ARGS=--rounds 3") == ["idle", "--rounds", "3"]


def test_steps_are_told_by_lines_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begin("64x64B", 2)
    lines.step("round 1 of 1: ring")
    lines.end()
    assert capsys.readouterr().err == "  64x64B, round 1 of 1: ring\n"


# ---- the page ----------------------------------------------------------------------------


def entry(name: str, cpu_us: dict[str, list[float]]) -> dict[str, Any]:
    """As a run writes it."""
    rounds = len(next(iter(cpu_us.values())))
    scenario = scenario_named(name)
    outcome = running.Outcome(scenario, compare(cpu_us), {"ring": 0.07}, {"rloop": "none here"})
    return running.as_dict(outcome, Options(rounds, 1.0), f"python -m benchmarks {name}")


FIGURES = {
    "ring": [5.0] * 9,
    "stock": [10.0] * 9,
    "stock-again": [10.2] * 9,
    "uvloop": [4.0] * 9,
    "gain": [3.0] * 9,
    "uvloop-protocol": [2.9] * 4 + [3.1] * 5,
    "c-ring": [2.9] * 5 + [3.1] * 4,
}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Results, Path]:
    """A tree with a README, and results that are good enough to be shown."""
    (tmp_path / "README.md").write_text("# A\n\n<!-- plot -->\n<!-- /plot -->\n\nB\n")
    return Results(tmp_path / "results", {"64x64B": entry("64x64B", FIGURES)}), tmp_path


def test_losses_are_all_told(made: tuple[Results, Path]) -> None:
    found = {
        (loss.ours, loss.rival, loss.metric): (round(loss.ratio, 2), loss.is_noise)
        for loss in losses(made[0].scenarios)
    }
    assert found == {
        (RING, "uvloop", "cpu_us"): (1.25, False),
        (GAIN, "c-ring", "cpu_us"): (1.03, True),  # and none to uvloop, by its median
    }
    lines = list(page.page_lines(made[0].scenarios, {}))
    assert "| 64x64B | CPU | ring / uvloop 1.25, gain / c-ring ~1.03 |" in lines


def test_the_page_tells_bars_doubts_commands_and_who_is_missing(
    made: tuple[Results, Path],
) -> None:
    text = "\n".join(page.page_lines(made[0].scenarios, {}))
    assert "| 64x64B | CPU, ring / stock | 0.50 [0.50-0.50] | ≤ 0.36 (0.33) |" in text
    assert "**missed**" in text
    assert "`python -m benchmarks 64x64B`" in text
    assert f"kernel {os.uname().release}" in text
    assert "- Without rloop: none here" in text
    assert "| 0.07 |" in text


def test_results_of_two_machines_are_not_passed_off_as_one(made: tuple[Results, Path]) -> None:
    scenarios = dict(made[0].scenarios)
    assert "One machine" in "\n".join(page.machine_lines(scenarios))
    other = entry("1x64B", {"ring": [5.0] * 9, "stock": [10.0] * 9})
    other["environment"] = {**other["environment"], "cpu": "another"}
    scenarios["1x64B"] = other
    assert "differ in machine" in "\n".join(page.machine_lines(scenarios))


def test_without_results_nothing_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["--publish", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "nothing is published: no results\n"


@pytest.mark.usefixtures("unplotted")
def test_too_few_rounds_are_not_published(made: tuple[Results, Path]) -> None:
    results, root = made
    results.scenarios["1x64B"] = entry("1x64B", {"ring": [5.0] * 8, "stock": [10.0] * 8})
    with pytest.raises(ValueError, match="fewer than 9 rounds: 1x64B"):
        page.publish(results, root)
    assert not (root / "docs").exists()


def test_what_is_published_is_whole(made: tuple[Results, Path]) -> None:
    """In a process of its own: matplotlib keeps the files of its fonts open."""
    results, root = made
    results.save(results.directory)
    program = (
        "import sys; from pathlib import Path; from benchmarks import page;"
        "from benchmarks.results import Results; root = Path(sys.argv[1]);"
        "[page.publish(Results.load(root / 'results'), root) for _ in range(2)]"
    )
    # The second time it finds its own plot in the README.
    subprocess.run([sys.executable, "-c", program, str(root)], cwd=ROOT, check=True)
    docs = root / "docs"
    text = (docs / "benchmarks.md").read_text()
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert images
    for image in images:
        assert (docs / image).stat().st_size > 1000
        assert (docs / image).with_suffix(".png").stat().st_size > 1000
    published = json.loads((docs / "benchmarks" / "results.json").read_text())
    assert published == json.loads(json.dumps(results.scenarios))
    readme = (root / "README.md").read_text()
    assert readme.count("docs/benchmarks/overview.svg") == 1
    assert readme.endswith("<!-- /plot -->\n\nB\n")


def test_idle_servers_are_on_the_page_too() -> None:
    programs = {
        "ring": {
            "switches": 0,
            "enters": 0,
            "switches_with_deadlines": 10,
            "enters_with_deadlines": 10,
            "rss_per_connection_bytes": 3700.0,
            "rss_start_kib": 30_000,
            "rss_after_load_kib": 31_000,
        }
    }
    found = {"environment": {}, "date": "", "command": "", "programs": programs, "bars": []}
    text = "\n".join(page.page_lines({IDLE: found}, {}))
    assert "| ring | 0 | 0 | 10 | 10 | 3,700 | 30,000 | 31,000 |" in text
