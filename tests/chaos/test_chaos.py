"""The short form of `make chaos`: one strike of each kind."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from cases import SHORT, Case
from kept import kept
from reliability import PAGE, page_with, table
from stores import CELL, observed_tables, run_tables
from strike import Outcome, strike
from summaries import write_run

from orchestrator.experiment import Cell, Run
from orchestrator.store.store import Store

FIRST = Cell(CELL.deployment, CELL.scenario, 1)


def test_the_page_has_the_table_of_the_results_that_lie_beside_the_suite() -> None:
    text = PAGE.read_text()
    assert page_with(text, Path(__file__).parent / "results.jsonl") == text


def test_a_row_of_the_table_adds_up_its_strikes_and_says_what_was_not_tried() -> None:
    one = {"event": "gcs", "phase": "writing", "lost": 1, "left": 2, "resumed": True}
    narrow = {**one, "phase": "warm-up", "status": 0, "gone_s": 1}
    one["compared"] = 9
    rows = table(
        [{**one, "status": 2, "gone_s": 1.26}, {**one, "status": 0, "gone_s": 9}, narrow],
        [Case("gcs", "building"), Case("gcs", "warm-up"), Case("gcs", "writing")],
    ).splitlines()
    assert rows[-3] == "| gcs | building | not tried | | | | |"
    assert rows[-2] == "| gcs | warm-up | 1 | 1 * | 2 | goes on | 1 of 1 |"
    assert rows[-1] == "| gcs | writing | 2 | 2 | 4 | 1.3 s | 2 of 2 |"


def test_a_server_of_a_joined_cluster_has_to_be_named() -> None:
    outcome = Outcome("joined gcs", "measuring", 0, 1.0, 0, 0, True, "note: no more", False, 9)
    assert outcome.faults(Case("joined gcs", "measuring")) == ["said: note: no more"]
    assert outcome.faults(Case("driver", "measuring")) == ["status 0, not -9"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The first cell, finished and observed."""
    store = Store(tmp_path / "tiny-1")
    store.create()
    store.update_manifest(cells=[FIRST.name], blocks=[{}], host={"name": "a"})
    write_run(store, Run(FIRST, 0, 0), run_tables())
    store.write_observed(FIRST, 0, observed_tables())
    return tmp_path


def test_what_is_added_to_results_takes_nothing_away(results: Path) -> None:
    before, store = kept(results), Store(results / "tiny-1")
    assert {Path(path).parent.name for path in before.parts} >= {"summary", "parts", "spans"}
    write_run(store, Run(CELL, 0, 0), run_tables())
    store.update_manifest(blocks=[{}, {}], finished_at="later")
    (store.folder / "SHA256SUMS").open("a").write("half a li")
    assert before.lost(kept(results)) == []


@pytest.mark.parametrize("table", ["summary", "requests", "parts", "spans"])
def test_a_part_of_the_finished_cell_that_is_changed_or_gone_is_lost(
    results: Path, table: str
) -> None:
    before = kept(results)
    assert before.count > len(before.parts) > 5
    (path,) = (results / "tiny-1" / table).glob("*.c1.*")
    path.write_bytes(b"x")
    assert before.lost(kept(results)) == [str(path.relative_to(results))]
    path.unlink()
    assert before.lost(kept(results)) == [str(path.relative_to(results))]


@pytest.mark.parametrize(
    ("name", "pattern", "by"),
    [
        ("SHA256SUMS", r"[^\n]*\n\Z", ""),
        ("SHA256SUMS", r"\A[0-9a-f]", "x"),
        ("manifest.json", r"\A.*\Z", ""),
        ("manifest.json", r'"name": "a"', '"name": "b"'),
        ("manifest.json", r'"host": {[^}]*},', ""),
        ("manifest.json", r'"blocks": \[[^\]]*\]', '"blocks": []'),
    ],
)
def test_a_line_of_the_journal_or_a_field_of_the_manifest_is_lost(
    results: Path, name: str, pattern: str, by: str
) -> None:
    before, path = kept(results), results / "tiny-1" / name
    text, changes = re.subn(pattern, by, path.read_text(), flags=re.DOTALL)
    path.write_text(text)
    assert (changes, before.lost(kept(results))) == (1, [name])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_whatever_dies_nothing_finished_is_lost_nothing_stays_and_the_same_command_goes_on(
    case: Case, fake_site: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as folder:  # sockets need a short path
        outcome = strike(case, fake_site, Path(folder))
    assert outcome.faults(case) == []
