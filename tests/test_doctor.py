"""``python -m uring_trio doctor``, and how the command line is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import sandbox
from marks import needs_ring

import uring_trio


def uring(
    *arguments: str, how: str = "NONE", **environment: str
) -> subprocess.CompletedProcess[str]:
    return sandbox.run(how, sys.executable, "-m", "uring_trio", *arguments, **environment)


@needs_ring
def test_doctor_on_the_ring_exits_with_0_and_names_what_there_is() -> None:
    done = uring("doctor")
    assert done.returncode == 0
    assert done.stdout.startswith("trio runs on io_uring here.")
    report = uring_trio.probe()
    for word in (report.kernel, report.trio_version, *report.setup_flags, *report.opcodes):
        assert word in done.stdout
    assert "reason" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 88


@needs_ring
def test_doctor_json_is_the_report_as_dict() -> None:
    done = uring("doctor", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == uring_trio.probe().as_dict()


@pytest.mark.parametrize("how", ["EPERM", "ENOSYS", "EOPNOTSUPP", "EINVAL", "ENOMEM"])
def test_doctor_where_denied_exits_with_1_and_says_why_and_what_to_do(how: str) -> None:
    as_json = uring("doctor", "--json", how=how)
    assert as_json.returncode == 1
    report = json.loads(as_json.stdout)
    assert report["backend"] == "epoll"
    assert f"({how})" in report["reason"]
    assert report["reason"] in report["problems"]

    for_people = uring("doctor", how=how)
    assert for_people.returncode == 1
    assert for_people.stdout.startswith("No io_uring here")
    text = " ".join(for_people.stdout.split())
    assert f"reason {report['reason']}" in text
    assert f"remedy {report['remedy']}" in text


def test_doctor_with_the_environment_on_epoll_exits_with_1() -> None:
    done = uring("doctor", URING_TRIO_BACKEND="epoll")
    assert done.returncode == 1
    assert "URING_TRIO_BACKEND" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["dcotor"], ["doctor", "--jsn"], ["doctor", "now"], ["run"], ["run", "--backend", "x"]],
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    done = uring(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_bad_environment_variable_is_bad_usage() -> None:
    done = uring("doctor", URING_TRIO_BACKEND="uring")
    assert done.returncode == 2
    assert "'uring'" in done.stderr


def test_version_and_help_exit_with_0() -> None:
    assert uring("--version").stdout == f"uring_trio {uring_trio.__version__}\n"
    for arguments in (["--help"], ["doctor", "--help"], ["run", "--help"]):
        done = uring(*arguments)
        assert done.returncode == 0
        assert "usage" in done.stdout


def test_a_reader_that_stops_early_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        command = [sys.executable, "-m", "uring_trio", "doctor", "--json"]
        done = subprocess.run(
            command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write_end)
    assert done.stderr == ""
