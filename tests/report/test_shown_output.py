"""What the pages show of commands is what they print, and the tutorial can be followed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import shown_output

TUTORIAL = shown_output.ROOT / "docs" / "tutorial.md"
NUMBER = re.compile(r"\d[\d.,:%-]*")


def blocks(page: Path) -> list[re.Match[str]]:
    return list(shown_output.BLOCK.finditer(page.read_text(encoding="utf-8")))


def beginning(line: str) -> str:
    """The first word of a line: figures, and which columns there is room for, differ each time."""
    return NUMBER.sub("#", line.split()[0]) if line.strip() else ""


@pytest.mark.slow
@pytest.mark.parametrize("page", shown_output.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_its_commands_print(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert shown_output.rewritten(text, with_measured=False) == text, (
        "run `python scripts/shown_output.py`"
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    place = shown_output.workplace(tmp_path)
    measured = [one for one in blocks(TUTORIAL) if shown_output.is_measured(one["command"])]
    assert len(measured) == 2
    for one in measured:
        printed = shown_output.printed(one["command"], place).splitlines()
        shown = [line for line in one["shown"].splitlines() if line not in ("", shown_output.GAP)]
        found = [beginning(line) for line in printed]
        for line in (line for line in shown if set(line) != {" ", "─"}):
            assert beginning(line) in found, line


def test_lines_that_are_left_out_leave_a_gap() -> None:
    output = "1\n2\n3\n4\n5\n"
    assert shown_output.chosen(output, None) == output
    assert shown_output.chosen(output, "1-2,4") == "1\n2\n...\n4\n...\n"
    assert shown_output.chosen(output, "4-5") == "4\n5\n"


def test_a_block_is_written_anew_and_what_measures_is_left_as_it_is() -> None:
    text = "a\n\n<!-- lines 1 -->\n\n```console\n$ orchestrator runs \\\n    x\nold\n```\nb\n"
    made = shown_output.page(text, lambda command: f"{command.split()[1]}\nmore\n")
    assert made == text.replace("old\n", "runs\n...\n")
    assert shown_output.page(text, lambda _: "") == text
    assert shown_output.is_measured("orchestrator submit --strategy tp2")
    assert shown_output.is_measured("orchestrator compare results/mine")
    assert not shown_output.is_measured("orchestrator compare docs/results/2xh100/qwen2.5-32b")
    assert not shown_output.is_measured("orchestrator submit --dry-run --strategy tp2")
