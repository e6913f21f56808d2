"""The page of a selection matrix in a browser without a network."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from browser import Chromium
from click.testing import CliRunner

from orchestrator import cli

ASKED = (
    "--model",
    "llama-8b",
    "--gpu",
    "h200,mi300x",
    "--gpus-max",
    "4",
    "--scenario",
    "short,long",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection")
    done = CliRunner().invoke(cli.main, ["matrix", *ASKED, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder / "selection.html"


def lines(chromium: Chromium) -> int:
    found = "document.querySelectorAll('[data-chart=crossover] .mark-line path').length"
    return int(chromium.evaluate(found))


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_has_a_field_for_each_row_and_a_curve_for_each_layout(
    page: Path, chromium: Chromium, dark: bool
) -> None:
    chromium.open(page, dark=dark)
    assert chromium.tab.locator(".matrix td").count() == 2 * 2  # kinds of GPU x scenarios
    assert lines(chromium) == 2 * 2  # pairs x layouts
    assert not chromium.complaints
    assert len(chromium.requests) == 1
    chromium.open(page, 390, dark)
    assert chromium.faults() == {"overlapping": [], "cut": [], "faint": []}


def test_a_field_says_without_its_colour_how_many_gpus_serve_the_load(
    page: Path, chromium: Chromium
) -> None:
    chromium.open(page)
    fields = chromium.tab.locator(".matrix td").all_inner_texts()
    assert all(re.search(r"\d GPUs?$", text) for text in fields)


def test_the_curves_follow_the_kind_of_gpu_that_is_chosen_and_a_link_shows_them(
    page: Path, chromium: Chromium
) -> None:
    chromium.open(page)
    assert chromium.tab.input_value("select[name=gpu]") == "H200"
    chromium.tab.select_option("select[name=gpu]", "MI300X")
    assert lines(chromium) == 0  # its link is not known
    said = chromium.tab.locator("[data-chart=crossover]").inner_text()
    assert said.count("is not known") == 2
    link = chromium.evaluate("location.hash")
    chromium.open(page, where=link)
    assert chromium.tab.input_value("select[name=gpu]") == "MI300X"
    assert lines(chromium) == 0


def test_the_matrix_and_the_curves_can_be_downloaded_and_printed(
    page: Path, chromium: Chromium, tmp_path: Path
) -> None:
    chromium.open(page)

    def rows(name: str, whole: bool) -> list[dict[str, str]]:
        text = chromium.evaluate(f"report.csv('{name}', {str(whole).lower()})")
        return list(csv.DictReader(io.StringIO(text)))

    assert {row["gpu"] for row in rows("selection", True)} == {"H200", "MI300X"}
    assert {row["scenario"] for row in rows("crossover", False)} == {"short"}
    assert {row["scenario"] for row in rows("crossover", True)} == {"short", "long"}
    assert "<svg" in chromium.evaluate("report.svg()")
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
    assert chromium.complaints == []
