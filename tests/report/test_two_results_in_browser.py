"""The page of two results in a browser without a network."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from browser import WIDTHS, Chromium
from click.testing import CliRunner
from two_results_inputs import write_result

from orchestrator import cli

STEADY = (100.0, 101.0, 99.0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tp4 is half as fast in the second under one load of two, and tp2 has one start there."""
    folder = tmp_path_factory.mktemp("two")
    same = {("tp4", 32): STEADY, ("pp4", 32): STEADY, ("pp4", 8): STEADY}
    base = write_result(folder / "a", {("tp4", 8): STEADY, ("tp2", 8): STEADY, **same})
    half = {("tp4", 8): (50.0, 50.5, 49.5), ("tp2", 8): (99.0,), **same}
    new = write_result(folder / "b", half, median_ttft_ms=50.0)
    out = folder / "changes.html"
    done = CliRunner().invoke(cli.main, ["compare", str(base), str(new), "--html", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_mark_is_drawn_for_each_ratio_and_a_line_for_each_interval(
    chromium: Chromium, page: Path, width: int, dark: bool
) -> None:
    chromium.open(page, width, dark)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.faults() == {"overlapping": [], "cut": [], "faint": []}
    marks = "document.querySelectorAll('[data-chart=ratios] .mark-symbol path').length"
    lines = "document.querySelectorAll('[data-chart=ratios] .mark-rule.role-mark line').length"
    assert chromium.evaluate(marks) == 3 + 2
    assert chromium.evaluate(lines) == 2 + 2 + 2  # tp2 has none; and 1 in each load
    assert chromium.complaints == []
    assert chromium.requests == [page.resolve().as_uri()]


def test_the_figure_that_is_chosen_is_in_the_address(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    chromium.tab.select_option("select[name=metric]", "median_ttft_ms")
    note = "document.querySelector('[data-note=ratios]').textContent"
    assert "No cell has this figure in both" in chromium.evaluate(note)
    assert chromium.evaluate("location.hash") == "#metric=median_ttft_ms"
    chromium.open(page, where="#metric=median_ttft_ms")
    assert "No cell has this figure in both" in chromium.evaluate(note)


def test_all_of_it_can_be_downloaded_and_printed(
    chromium: Chromium, page: Path, tmp_path: Path
) -> None:
    chromium.open(page)
    found = list(csv.DictReader(io.StringIO(chromium.evaluate("report.csv(false)"))))
    assert {row["layout"] for row in found} == {"tp4", "tp2", "pp4"}
    worse = next(row for row in found if (row["layout"], row["concurrency"]) == ("tp4", "8"))
    assert (float(worse["ratio"]), worse["change"]) == (pytest.approx(0.5), "worse")
    assert "<svg" in chromium.evaluate("report.svg()")
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
    assert chromium.complaints == []
