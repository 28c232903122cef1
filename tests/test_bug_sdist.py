"""The sdist can be tested, not only built: it has every file that the repository has."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 50
# Of the repository, and of no use without it.
NOT_SHIPPED = (".ci/", ".gitignore")

BUILD = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"


def test_sdist_has_what_the_repository_has(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        [git, "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout.split()
    files = {name for name in listed if not name.startswith(NOT_SHIPPED)}
    tree = tmp_path / "tree"
    for name in files:
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    with tarfile.open(tmp_path / built.stdout.split()[-1]) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert files - shipped == set()
