"""What is one per process: one handler for forks, whose steps are in one order."""

from __future__ import annotations

import ast
import os
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import uring_trio.gain
from uring_trio import _process

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(uring_trio.__file__).parent


def in_forked_child(check: Callable[[], None]) -> bool:
    """Whether *check* raises nothing there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:  # noqa: BLE001  the child must not return
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_nobody_else_registers_a_handler() -> None:
    found = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "register_at_fork"
    }
    assert found == {"_process.py"}


def test_each_step_is_somebodys() -> None:
    assert _process._steps.keys() == set(_process.IN_CHILD)


@pytest.mark.parametrize("step", ["no such step", "kernel"])
def test_a_step_that_is_unknown_or_taken_is_a_mistake(step: str) -> None:
    with pytest.raises(AssertionError):
        _process.in_child(step, lambda: None)


def test_steps_are_made_in_the_order_that_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for step in reversed(_process.IN_CHILD):  # whoever is imported first
        monkeypatch.delitem(_process._steps, step)

        def note(step: str = step) -> None:
            made.append(step)

        _process.in_child(step, note)

    def check() -> None:
        assert made == list(_process.IN_CHILD)

    assert in_forked_child(check)
    assert made == []


@pytest.mark.parametrize("name", ["install", "users", "kernel"])
def test_a_lock_that_another_thread_held_is_free_in_the_child(name: str) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with getattr(_process.locks, name):
            held.set()
            done.wait(30)

    def check() -> None:
        assert getattr(_process.locks, name).acquire(timeout=1)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert not getattr(_process.locks, name).acquire(blocking=False)
        assert in_forked_child(check)
    finally:
        done.set()
        thread.join()
