"""The short form of `make chaos`: one strike of each kind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from cases import SHORT, Case
from reliability import PAGE, page_with, table
from strike import strike


def test_the_page_has_the_table_of_the_results_that_lie_beside_the_suite() -> None:
    text = PAGE.read_text()
    assert page_with(text, Path(__file__).parent / "results.jsonl") == text


def test_a_row_of_the_table_adds_up_its_strikes() -> None:
    one = {"event": "gcs", "phase": "writing", "lost": 1, "left": 2, "resumed": True}
    row = table([{**one, "status": 2, "gone_s": 1.26}, {**one, "status": 0, "gone_s": 9}])
    assert row.splitlines()[-1] == "| gcs | writing | 2 | 2 | 4 | 1.3 s | 2 of 2 |"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_whatever_dies_nothing_finished_is_lost_nothing_stays_and_the_same_command_goes_on(
    case: Case, fake_site: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as folder:  # sockets need a short path
        outcome = strike(case, fake_site, Path(folder))
    assert outcome.faults(case) == []
