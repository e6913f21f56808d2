"""The commands that pages show do their work, as far as that needs no GPU and no cluster."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmark_scripts import ended
from click.testing import CliRunner
from page_commands import FENCED, PAGES, ROOT, commands
from shown_output import workplace

from orchestrator.cli import main
from orchestrator.predict import crossover, matrix

ALONE = ("audit", "compare", "crossover", "explain", "matrix", "plan", "recommend", "recompute")
ALONE += ("report", "strategies", "submit --dry-run --gpu")
# What the reader fills in, what is on the reader's disk, and layouts that examples/ adds.
THEIRS = re.compile(
    r"\b[A-Z]{3,}\b|\bA B\b|s3://|\b(?:base|new)\b|\bresults/[a-z]+-|trace\.jsonl|ppfront|mtp"
)
MEASURED = re.compile(r"(?<!docs/)\bresults/")
PROGRAM = re.compile(r"^(?:\$ )?(?:\S*/)?python3? ((?:scripts|benchmarks)/\S+\.py)(.*)$")
TARGET = re.compile(r"(?:^|`)make ([a-z][a-z-]*)", re.MULTILINE)


def alone() -> Iterator[str]:
    """Those that need nothing but what the repository holds."""
    for page in PAGES:
        for line in commands(page.read_text(encoding="utf-8")):
            text = " ".join(shlex.split(line, comments=True))
            if text.startswith(ALONE) and not THEIRS.search(line) and not MEASURED.search(line):
                yield " ".join(line.split("  #")[0].split())


def programs() -> Iterator[tuple[str, str]]:
    """The programs of the repository that blocks start: the file, and what it is given."""
    for page in PAGES:
        for block in FENCED.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if found := PROGRAM.match(line.strip()):
                    yield found[1], found[2].split("#")[0]


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(set(alone())))
def test_a_command_that_needs_no_devices_does_its_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: most of them take less time than the imports of one of their own. A matrix
    has all its fields, each up to a few concurrencies, and its curves have their ends."""
    monkeypatch.chdir(workplace(tmp_path))
    monkeypatch.setattr(matrix, "changes", functools.partial(matrix.changes, most=2))
    monkeypatch.setattr(crossover, "DRAWN", 2)
    out = ["--out", "report.html"] if command.startswith("report") else []
    done = CliRunner().invoke(main, [*shlex.split(command), *out])
    assert done.exit_code == 0, done.output
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted({name for name, _ in programs()}))
def test_a_program_of_a_page_takes_the_options_that_it_is_given_there(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(ROOT / program, "--help", patch=monkeypatch) == 0
    helped = capsys.readouterr().out
    for name, given in programs():
        if name == program:
            for option in re.findall(r"--[a-z-]+", given):
                assert option in helped, f"{program} {given}"


def test_every_target_of_make_on_a_page_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in TARGET.findall(page.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_there_are_such_commands_and_programs() -> None:
    assert len(set(alone())) > 20
    assert len({name for name, _ in programs()}) > 2
