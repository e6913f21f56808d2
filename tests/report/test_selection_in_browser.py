"""The page of a selection matrix in a browser without a network."""

from __future__ import annotations

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


def drawn(chromium: Chromium, chart: str, mark: str) -> int:
    found = f"document.querySelectorAll('[data-chart={chart}] .mark-{mark} path').length"
    return int(chromium.evaluate(found))


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_draws_a_field_for_each_row_and_a_curve_for_each_layout(
    page: Path, chromium: Chromium, dark: bool
) -> None:
    chromium.open(page, dark=dark)
    assert drawn(chromium, "matrix", "rect") == 2 * 2  # kinds of GPU x scenarios
    assert drawn(chromium, "crossover", "line") == 2 * 2  # pairs x layouts
    assert not chromium.complaints
    assert len(chromium.requests) == 1


def test_the_curves_follow_the_kind_of_gpu_that_is_chosen(page: Path, chromium: Chromium) -> None:
    chromium.open(page)
    choose = "document.querySelector('select[name=gpu]')"
    assert chromium.evaluate(f"{choose}.value") == "H200"
    chromium.evaluate(f"{choose}.value = 'MI300X'; {choose}.dispatchEvent(new Event('change'))")
    assert drawn(chromium, "crossover", "line") == 0  # its link is not known
    said = chromium.evaluate("document.querySelector('[data-chart=crossover]').innerText")
    assert said.count("is not known") == 2
