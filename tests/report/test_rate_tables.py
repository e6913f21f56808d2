"""What a search of rates found, on the page, in a terminal and in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import data_of, text_of
from rate_inputs import NONE_MET, SLO, found
from rich.console import Console
from summaries import comparison

from orchestrator.analysis.goodput import RATES
from orchestrator.analysis.load import found_rates
from orchestrator.cli import main
from orchestrator.report.charts.choices import choices
from orchestrator.report.html import render_html
from orchestrator.report.sweep import rate_tables, render_rates
from orchestrator.store.store import Store

HEADING = "tiny · short · at most 8 concurrent · torch · ttft:p99:2000"


def test_the_layout_with_the_highest_rate_comes_first_with_all_that_was_tried() -> None:
    (table,) = rate_tables([NONE_MET, found(), found("tp4", rate=600.0, rate_per_gpu=150.0)])
    assert table.heading == HEADING
    assert [(one.layout, one.of_highest) for one in table.rows] == [
        ("tp2", 1.0),
        ("tp4", 0.5),
        ("pp2", 0.0),
    ]
    assert table.rows[0].figures == ["1200", "600", "4000", "1800", "2400"]
    assert table.rows[0].tried == [("1200", True), ("1800", False), ("2400", False)]
    assert [one.ended_early for one in table.rows] == [False, False, True]


def test_engines_are_told_apart_and_loads_and_slos_have_tables_of_their_own() -> None:
    both = [found(), found(engine="vllm")]
    (table,) = rate_tables(both)
    assert [one.layout for one in table.rows] == ["tp2 torch", "tp2 vllm"]
    assert [one.sentence.partition(":")[0] for one in table.rows] == ["tp2 torch", "tp2 vllm"]
    assert "torch" not in table.heading
    assert len(rate_tables([found(), found(slo="tpot:p95:50")])) == 2


def test_where_no_rate_was_met_that_is_said_and_why_the_search_ended() -> None:
    console = Console(record=True, width=100)
    render_rates([NONE_MET], console)
    said = " ".join(console.export_text().split())
    assert "1200✗ 1800✗ 2400✗" in said
    assert f"pp2: meets {SLO} at no rate tried, the lowest 1200 requests/s" in said
    assert "the search ended early: out of memory" in said
    render_rates([], console)
    assert console.export_text() == ""


def test_where_conversations_arrive_the_rates_are_of_these() -> None:
    console = Console(record=True, width=160)
    render_rates([found(arriving="conversations")], console)
    text = console.export_text()
    assert "met at conv/s" in text
    assert "requests" not in text
    assert f"tp2: meets {SLO} up to 1200 conversations/s, and not at 1800 conversations/s" in text


def test_compare_of_the_folder_ends_with_what_was_found(searched: Path) -> None:
    done = CliRunner().invoke(main, ["compare", str(searched)])
    last = done.stdout[done.stdout.index(HEADING) :]
    assert "1200✓ 1800✗ 2400✗" in last
    assert f"tp2: meets {SLO} up to 1200 requests/s, and not at 1800" in last
    rows = json.loads(CliRunner().invoke(main, ["compare", str(searched), "--json"]).stdout)[
        "rates"
    ]
    assert [(one["strategy"], one["rate"]) for one in rows] == [("pp2", None), ("tp2", 1200.0)]


def test_the_page_has_the_table_first_and_its_data(searched: Path, tmp_path: Path) -> None:
    page = render_html(searched, tmp_path / "page.html")
    text = text_of(page)
    first = text.index("The highest request rate that meets the SLO")
    assert first < text.index("The layouts side by side")
    assert f"{HEADING} layout met up to" in text
    assert "tp2 1200 600 4000 1800 2400 1200&nbsp;✓ 1800&nbsp;✗ 2400&nbsp;✗" in text
    table = data_of(page)["tables"]["rates"]
    assert [row[table["columns"].index("strategy")] for row in table["rows"]] == ["pp2", "tp2"]


def test_a_page_of_other_results_has_no_such_table(searched: Path, tmp_path: Path) -> None:
    page = render_html(searched / "tiny-1200", tmp_path / "page.html")
    assert 'id="rates"' not in page.read_text()
    assert found_rates([searched / "tiny-1200"]) == []


def test_experiments_that_differ_in_their_rate_are_called_by_it(
    searched: Path, tmp_path: Path
) -> None:
    page = render_html(searched, tmp_path / "page.html")
    assert [(one["name"], one["label"]) for one in data_of(page)["experiments"]] == [
        ("tiny-0", "tiny, closed loop"),
        ("tiny-1200", "tiny, 1200 requests/s"),
        ("tiny-2400", "tiny, 2400 requests/s"),
    ]
    loads = [one["scenarios"][0]["loads"] for one in data_of(page)["experiments"]]
    assert loads[:2] == [["8 concurrent"], ["1200 requests/s, at most 8 concurrent"]]
    alike = [comparison(experiment=name, request_rate=2.0) for name in ("a", "b")]
    assert [one.label for one in choices(alike)] == ["tiny (a)", "tiny (b)"]


@pytest.mark.parametrize("command", ["pack {root} --out {out}", "export {root} --out {out}"])
def test_files_for_others_hold_it(searched: Path, tmp_path: Path, command: str) -> None:
    arrow = ["--format", "arrow"] if command.startswith("export") else []
    asked = command.format(root=searched, out=tmp_path / "out").split()
    assert CliRunner().invoke(main, [*asked, *arrow]).exit_code == 0
    assert found_rates([tmp_path / "out"]) == [NONE_MET, found()]


def test_a_packed_search_reads_like_the_one_it_was_made_of(searched: Path, tmp_path: Path) -> None:
    CliRunner().invoke(main, ["pack", str(searched), "--out", str(tmp_path)])
    asked = (["compare", str(one)] for one in (searched, tmp_path))
    first, again = (CliRunner().invoke(main, one).stdout for one in asked)
    assert HEADING in first
    assert first == again


def test_a_damaged_file_counts_as_missing_and_the_rest_is_shown(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(tmp_path).write_rates(RATES.make([found()]))
    kept = tmp_path / "rates.arrow"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert found_rates([searched, tmp_path]) == [NONE_MET, found()]
    assert f"{kept} counts as missing" in capsys.readouterr().err
