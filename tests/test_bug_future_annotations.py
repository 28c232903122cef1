"""A program started by ``python -m uring_trio run`` is compiled by its own rules, not by ours."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 40


def test_program_does_not_inherit_our_future_statements(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("def f(x: int) -> None: ...\nprint(f.__annotations__['x'])\n")
    command = [sys.executable, "-m", "uring_trio", "run", "--backend=epoll", str(program)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert printed.stdout == "<class 'int'>\n"
