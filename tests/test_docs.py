"""What the documentation says can be done: its code runs, its commands, names and links exist.

A Python block runs as a program of its own, or under pytest if it defines tests; those of
callback servers only where there is a ring. Above a block may stand a comment:

    <!-- not run: reason -->          the block serves for ever, say
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import harness
import pytest

import uring_trio
from uring_trio import __main__ as command_line
from uring_trio import gain

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "csrc" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]
)
USED = ("backends", "gain", "reference", "testing")  # the pages of docs/ that are for users
BLOCK_LIMIT_S = 30  # a block takes well under a second; pytest in it one or two

FENCE = re.compile(r"^```(\w*)$")
NOT_RUN = re.compile(r"<!-- not run: .+ -->")
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`[^`]+`")
NEEDS_THE_RING = re.compile(r"^from uring_trio import gain$", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)

# A full stop and what may close a sentence, then the beginning of another.
SENTENCE_BREAK = re.compile(r"""[.!?]["')*_]* +["'(*_]*[A-Z`]""")
LIST_ITEM = re.compile(r"^ *([-*]|\d+\.) +")


class Block(NamedTuple):
    """A fenced block, or a run of prose where the language is None."""

    page: Path
    line: int
    language: str | None
    runs: bool
    text: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """The page's fenced blocks and the prose between them, in order."""
    found: list[Block] = []
    lines: list[str] = []
    language: str | None = None
    start = 1
    runs = True

    def end_block() -> None:
        found.append(Block(page, start, language, runs, "".join(f"{x}\n" for x in lines)))

    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if fence is None:
            lines.append(line)
            continue
        end_block()
        if language is None:
            runs = not (lines and NOT_RUN.fullmatch(lines[-1].strip()))
            language = fence[1]
        else:
            language, runs = None, True
        lines, start = [], number + 1
    assert language is None, f"{name_of(page)}: the block at line {start} has no end"
    end_block()
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROSE = [block for block in BLOCKS if block.language is None]
PYTHON = [block for block in BLOCKS if block.language == "python" and block.runs]
SHELL = [block for block in BLOCKS if block.language in ("sh", "console")]


def block_id(block: Block) -> str:
    return f"{name_of(block.page)}:{block.line}"


# ---- code -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", PYTHON, ids=block_id)
def test_python_block_runs(block: Block, tmp_path: Path) -> None:
    reason = harness.ring_denied() if NEEDS_THE_RING.search(block.text) else None
    if reason is not None:
        if os.environ.get("URING_TRIO_REQUIRE") == "1":
            pytest.fail(f"URING_TRIO_REQUIRE is 1, but {reason}", pytrace=False)
        pytest.skip(reason)
    program = tmp_path / "test_block.py"
    program.write_text(block.text)
    command = [sys.executable, "-W", "error", str(program)]
    if re.search(r"^(async )?def test_", block.text, re.MULTILINE):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(program)]
    environment = {k: v for k, v in os.environ.items() if k != "URING_TRIO_BACKEND"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BLOCK_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_python_on_the_pages_of_users() -> None:
    pages = {name_of(block.page) for block in PYTHON}
    assert pages >= {"README.md", *(f"docs/{x}.md" for x in USED)}
    gain_pages = {name_of(block.page) for block in PYTHON if NEEDS_THE_RING.search(block.text)}
    assert gain_pages >= {"README.md", "docs/gain.md"}


# ---- commands ---------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Each command line, with the page that it is on."""
    found = []
    for block in BLOCKS:
        if block in SHELL:
            lines = block.text.splitlines()
        elif block.language is None:
            indented = [x.strip() for x in block.text.splitlines() if x.startswith("    ")]
            lines = [*indented, *(x.strip("`") for x in INLINE_CODE.findall(block.text))]
        else:
            continue
        found += [(name_of(block.page), line.partition("#")[0].strip()) for line in lines]
    return [(page, line) for page, line in dict.fromkeys(found) if line]


def make_targets(directory: Path) -> set[str]:
    makefile = (directory / "Makefile").read_text()
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


MAKE = [(page, line) for page, line in commands() if re.match(r"make [-a-z]", line)]
MODULES = [(page, line) for page, line in commands() if re.match(r"python -m \w", line)]
SCRIPTS = [(page, line) for page, line in commands() if re.match(r"python [\w./]+\.py", line)]


@pytest.mark.parametrize(("page", "line"), MAKE)
def test_make_target_exists(page: str, line: str) -> None:
    words = line.split()[1:]
    directory = ROOT
    if words[0] == "-C":
        directory = ROOT / words[1]
        words = words[2:]
    assert words[0] in make_targets(directory)


@pytest.mark.parametrize(("page", "line"), MODULES)
def test_module_command_exists(page: str, line: str) -> None:
    words = line.split()[2:]
    if words[0] != "uring_trio":
        assert importlib.util.find_spec(words[0]) or (ROOT / words[0]).is_dir()
        return
    subcommand = words[1:2]
    if subcommand in ([], ["--version"]):
        return
    usage = command_line.parser().format_help()
    assert re.search(rf"^ +{re.escape(subcommand[0])} ", usage, re.MULTILINE), usage
    options = [word.strip("[]").partition("=")[0] for word in words[2:]]
    options = [option for option in options if option.startswith("--")]
    if options:
        command = [sys.executable, "-m", "uring_trio", subcommand[0], "--help"]
        offered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for option in options:
            assert option in offered


@pytest.mark.parametrize(("page", "line"), SCRIPTS)
def test_script_exists(page: str, line: str) -> None:
    assert (ROOT / line.split()[1]).is_file()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_two_commands_of_the_first_run_are_in_the_readme() -> None:
    on_readme = [line for page, line in MAKE if page == "README.md"]
    assert {"make demo", "make test"} <= set(on_readme)


# ---- names ------------------------------------------------------------------------------


def repository_files() -> set[str]:
    """The names of all files that are not built, and their paths."""
    skipped = {".git", ".venv", ".matrix", "build", "dist", "__pycache__"}
    found = set()
    for directory, directories, names in os.walk(ROOT):
        directories[:] = [d for d in directories if d not in skipped]
        found |= set(names)
        found |= {str(Path(directory, name).relative_to(ROOT)) for name in names}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    prose = "".join(block.text for block in PROSE if block.page == page)
    named = set(re.findall(r"`([\w./-]+\.(?:py|c|h|md|toml))`", prose))
    files = repository_files()
    invented = {"script.py", "__main__.py", "Python.h", "seeds_NAME.py"}
    assert {name for name in named if name not in files} <= invented


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_public_names_that_are_used_exist(page: Path) -> None:
    text = "".join(b.text for b in BLOCKS if b.page == page and b.language in (None, "python"))
    for name in set(re.findall(r"\buring_trio\.([A-Za-z]\w*)", text)):
        known = name in uring_trio.__all__ or importlib.util.find_spec(f"uring_trio.{name}")
        assert known, f"uring_trio.{name}"
    for name in set(re.findall(r"(?<![\w./])gain\.(?!md\b|py\b)([A-Za-z]\w*)", text)):
        assert name in gain.__all__, f"gain.{name}"


def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    headings = {heading.strip("`") for heading in HEADING.findall(reference)}
    assert set(uring_trio.__all__) <= headings
    for dataclass in (uring_trio.ProbeReport, uring_trio.IOStatistics):
        for field in dataclasses.fields(dataclass):
            assert f"| `{field.name}` |" in reference


# ---- form -------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    prose = "".join(block.text for block in blocks_of(page) if block.language is None)
    headings = [heading.lower().replace("`", "") for heading in HEADING.findall(prose)]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for block in PROSE:
        if block.page != page:
            continue
        for target in LINK.findall(block.text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            if anchor:
                assert anchor in anchors_of(linked), target


def prose_lines(page: Path) -> list[tuple[int, str]]:
    """Sentences, and fragments in lists: no headings, tables, images, comments or code."""
    found = []
    for block in PROSE:
        if block.page != page:
            continue
        for number, line in enumerate(block.text.splitlines(), block.line):
            if line and not line.startswith(("#", "|", "![", "<!--", "    ")):
                found.append((number, INLINE_CODE.sub("`x`", LINK.sub("link", line))))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_one_sentence_a_line(page: Path) -> None:
    for number, line in prose_lines(page):
        text = LIST_ITEM.sub("", line)
        assert not SENTENCE_BREAK.search(text), f"{name_of(page)}:{number}: two sentences"
        if text == line.lstrip() and not line.startswith(" "):
            assert text.endswith((".", ":", "?", "!")), f"{name_of(page)}:{number}: no end"
