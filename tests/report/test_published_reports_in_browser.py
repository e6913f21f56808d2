"""Every published report opens whole, in a browser without a network."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import READY, WIDTHS, Chromium
from pages import data_of

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGES = sorted(RESULTS.rglob("report.html"))
TRAINED = [path for path in PAGES if (path.parent / "training.arrow").exists()]
REPORTS = [path for path in PAGES if path not in TRAINED]
PAPER_WIDTH, PAPER_HEIGHT = 688, 950  # px between margins of 14 mm: of A4, and of Letter
THOUSANDS = re.compile(r'"\d{1,3}(,\d{3})+(\.\d+)?"')


def of_each(pages: list[Path]) -> pytest.MarkDecorator:
    """What is tested of a page follows each other, so that it is opened once for each width."""
    names = [str(path.parent.relative_to(RESULTS)) for path in pages]
    return pytest.mark.parametrize("path", pages, ids=names, scope="module")


def check_texts(chromium: Chromium, width: int) -> None:
    """All that is written can be read, and fits."""
    assert chromium.faults() == {"overlapping": [], "cut": [], "faint": []}
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width


def expected(data: dict[str, Any]) -> dict[str, int]:
    """Chart -> how many rows of its data there are, over all loads."""
    cells = data["cells"]
    measured = [cell for cell in cells if cell["throughput"] is not None]
    both = [cell for cell in cells if None not in (cell["per_user"], cell["per_gpu"])]
    return {
        "cost": len(data["cost"]),
        "throughput": sum(cell in measured or cell["bound"] is not None for cell in cells),
        "concurrency": len(measured),
        "tradeoff": len(both),
        "step": sum(len(cell["parts"]) for cell in cells),
        "timeline": sum(len(one["bars"]) for one in data["timeline"]),
        "latencies": sum(len(one["q"]) for one in data["latencies"]),
        "memory": len(data["memory"]),
        "telemetry": sum(len(one["s"]) for one in data["telemetry"]),
    }


def test_there_are_published_reports() -> None:
    assert len(REPORTS) > 5


@of_each(REPORTS + TRAINED)
@pytest.mark.parametrize("width", [390, 1440])
def test_every_text_of_a_published_report_can_be_read(
    chromium: Chromium, path: Path, width: int
) -> None:
    chromium.look(path, width, dark=True)
    check_texts(chromium, width)


@of_each(REPORTS)
def test_a_published_report_draws_every_row_and_every_load_without_a_complaint(
    chromium: Chromium, path: Path
) -> None:
    data = data_of(path)
    chromium.look(path, 1440, dark=True)
    for chart, rows in expected(data).items():
        text = chromium.evaluate(f"report.csv('{chart}', true)")
        assert len(list(csv.DictReader(io.StringIO(text)))) == rows, chart
        shown = chromium.evaluate(f"report.csv('{chart}')")
        drawn = f"document.querySelector('[data-chart={chart}]').dataset.drawn"
        of_load = len(list(csv.DictReader(io.StringIO(shown))))
        assert of_load == int(chromium.evaluate(drawn) or 0), chart
        assert (of_load > 0) == (rows > 0), chart
        marks = f"document.querySelectorAll('[data-chart={chart}] .role-mark path').length"
        assert (chromium.evaluate(marks) > 0) == (rows > 0), chart
        assert not THOUSANDS.search(shown + text), chart
    assert not THOUSANDS.search(chromium.evaluate("report.csv('comparison')"))
    _draws_every_load(chromium, data)
    assert chromium.complaints == []
    assert chromium.requests == [path.resolve().as_uri()]


def _draws_every_load(chromium: Chromium, data: dict[str, Any]) -> None:
    """What was published is drawn under each load, not only under the one that is shown first."""
    for load in data["experiments"][0]["scenarios"][-1]["concurrencies"]:
        chromium.choose("concurrency", load)
        chromium.wait(READY)
        for chart, field in (("cost", "cost"), ("memory", "memory")):
            mine = [row for row in data[field] if row["concurrency"] == load]
            drawn = f"document.querySelector('[data-chart={chart}]').dataset.drawn"
            assert int(chromium.evaluate(drawn) or 0) == len(mine), (chart, load)
        said = json.loads(chromium.evaluate("JSON.stringify(report.state)"))
        assert said["concurrency"] == load


@of_each(REPORTS + TRAINED)
def test_a_published_report_is_read_by_daylight_and_prints_each_chart_on_one_page_with_its_heading(
    chromium: Chromium, path: Path
) -> None:
    chromium.open(path, 768)
    check_texts(chromium, 768)
    chromium.on_paper(PAPER_WIDTH)
    charts = "[...document.querySelectorAll('section.chart:not([hidden])')]"
    sizes = chromium.evaluate(f"{charts}.map((one) => [one.id, one.offsetHeight])")
    assert len(sizes) > (6 if path in REPORTS else 2)
    assert {chart: height for chart, height in sizes if height > PAPER_HEIGHT} == {}


def test_a_published_training_opens_whole_and_its_tables_are_saved_with_numbers(
    chromium: Chromium,
) -> None:
    (path,) = TRAINED
    data = data_of(path)
    for width in WIDTHS:
        chromium.open(path, width)
        assert chromium.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    for chart in ("step", "memory", "loss"):
        drawn = f"document.querySelector('[data-chart={chart}]').dataset.drawn"
        assert int(chromium.evaluate(drawn)) == len(data[chart]) > 0, chart
    with chromium.tab.expect_download() as saved:
        chromium.tab.locator("#parts [data-table]").click()
    rows = list(csv.DictReader(saved.value.path().open()))
    assert [row["rank"] for row in rows] == ["0", "1", "2", "3"]
    assert all(float(row["step"]) > 1000 for row in rows)
    assert {"Node", "Batch"} <= set(chromium.tab.locator(".setup dt").all_inner_texts())
    assert chromium.complaints == []
