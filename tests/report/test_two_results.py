"""Two results side by side: in a terminal, as JSON and as a page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from two_results_inputs import MANIFEST, OTHER_GPU, starts, with_metric, write_result

from orchestrator import cli
from orchestrator.analysis.comparing.changes import METRICS, changes
from orchestrator.analysis.comparing.surroundings import Surroundings
from orchestrator.analysis.comparing.two_results import TwoResults, cells_of, two_results
from orchestrator.analysis.summary import Summary
from orchestrator.report.charts.ratios import Conclusion, conclusion
from orchestrator.report.two_results import SHOWN, render_changes

STEADY = (100.0, 101.0, 99.0)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)])


def words(base: list[Summary], new: list[Summary]) -> dict[str, str]:
    rows = changes(TwoResults(cells_of(base), cells_of(new), Surroundings()))
    return {one.metric: one.change for one in rows}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """tp4 is half as fast in the second; pp4 only failed there, dp4 is only there, tp2 has one
    start in it."""
    base = write_result(
        tmp_path / "base",
        {("tp4", 8): STEADY, ("pp4", 8): STEADY, ("tp2", 8): STEADY, ("tp4", 32): STEADY},
        median_ttft_ms=50.0,
    )
    new = write_result(
        tmp_path / "<new> & 'co'",
        {("tp4", 8): (50.0, 50.5, 49.5), ("pp4", 8): (None,), ("tp2", 8): (99.0,)}
        | {("dp4", 8): STEADY, ("tp4", 32): STEADY},
        {**MANIFEST, "gpus": [OTHER_GPU], "environment": {"NCCL_ALGO": "<Tree>"}},
        median_ttft_ms=50.0,
    )
    return base, new


# -- what is said


def test_a_change_has_a_word_only_where_the_interval_leaves_one_out() -> None:
    def ttft(*values: float) -> list[Summary]:
        return with_metric("median_ttft_ms", values)

    assert words(ttft(50.0, 50.1), ttft(40.0, 40.1))["median_ttft_ms"] == "better"
    assert words(ttft(50.0, 50.1), ttft(60.0, 60.1))["median_ttft_ms"] == "worse"
    assert words(ttft(50.0, 60.0), ttft(55.0, 56.0))["median_ttft_ms"] == "not shown"
    assert words(ttft(50.0, 50.1), ttft(60.0))["median_ttft_ms"] == "one start"
    assert words(starts(STEADY), starts([200.0, 201.0]))["output_throughput"] == "better"


def test_a_metric_that_no_side_knows_is_left_out_and_one_that_a_side_knows_has_no_ratio() -> None:
    found = words(with_metric("median_ttft_ms", [50.0, 50.1]), starts(STEADY))
    assert found == {"output_throughput": "not shown", "median_ttft_ms": "no ratio"}


def test_every_metric_that_is_laid_side_by_side_has_a_heading() -> None:
    assert tuple(SHOWN) == METRICS


# -- in a terminal


def test_two_results_with_cells_in_common_are_laid_side_by_side(folders: tuple[Path, Path]) -> None:
    done = call(*folders)
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert text.index("another node: yes") < text.index("environment.NCCL_ALGO")
    assert text.index("environment.NCCL_ALGO") < text.index("m · short · 8 concurrent")
    assert text.index("m · short · 8 concurrent") < text.index("m · short · 32 concurrent")
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.split()}
    assert lines["pp4"] == "pp4 100 failed - - - 3 / 0"
    assert lines["dp4"] == "dp4 absent 100 - - - 0 / 3"
    assert lines["tp2"] == "tp2 100 99.0 0.990 1.000 1.000 3 / 1"  # without an interval
    (half,) = (line for line in text.splitlines() if " 50.0" in line)
    assert re.search(r"0\.500 \[0\.4\d\d, 0\.5\d\d\]", half)
    assert "a side has one start" in text
    assert f"orchestrator compare {folders[0]}; orchestrator compare {folders[1]}" in text
    assert "delivers" not in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_tables_fit_the_terminal_with_every_interval_whole(
    folders: tuple[Path, Path], width: int
) -> None:
    results = two_results(*folders)
    console = Console(width=width, file=io.StringIO())
    render_changes(folders, changes(results), results.surroundings, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert len(re.findall(r"\[\d\.\d{3}, \d\.\d{3}\]", text)) == 6  # of tp4: two loads


def test_one_folder_and_folders_without_common_cells_print_their_own_comparison(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_result(tmp_path / "other", {("tp1", 8): STEADY})
    for arguments in ((folders[0],), (folders[0], other), (*folders, other)):
        text = call(*arguments).stdout
        assert "TTFT ms" in text
        assert "new / base" not in text
        assert "changes" not in json.loads(call(*arguments, "--json").stdout)


def test_a_folder_that_holds_a_cell_twice_is_compared_by_itself_and_that_is_said(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_result(tmp_path / "twice" / name, {("tp4", 8): STEADY})
    done = call(folders[0], tmp_path / "twice")
    assert (done.exit_code, "new / base" in done.stdout) == (0, False)
    assert "note: not laid side by side" in done.stderr
    assert "the same cell in one and two" in done.stderr


def test_the_json_has_both_the_changes_and_what_each_says_by_itself(
    folders: tuple[Path, Path],
) -> None:
    data = json.loads(call(*folders, "--json").stdout)
    assert set(data) >= {"comparison", "verdicts", "changes", "another_node", "environment"}
    assert data["another_node"] is True
    (half,) = (
        row
        for row in data["changes"]
        if (row["strategy"], row["max_concurrency"], row["metric"])
        == ("tp4", 8, "output_throughput")
    )
    assert (half["base"], half["new"], half["ratio"]) == (100.0, 50.0, pytest.approx(0.5, 0.01))
    assert (half["change"], half["base_starts"], half["new_starts"]) == ("worse", 3, 3)
    assert half["ci_low"] < 0.5 < half["ci_high"] < 1


@pytest.mark.parametrize("option", [("--objective", "latency"), ("--difference", "0.1")])
def test_what_is_of_verdicts_within_one_result_is_refused_for_two_side_by_side(
    folders: tuple[Path, Path], option: tuple[str, str]
) -> None:
    done = call(*folders, *option)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{option[0]} is of the verdicts within one result" in done.stderr


def test_the_side_by_side_can_be_a_picture(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert call(*folders, "--svg", tmp_path / "x.svg").exit_code == 0
    assert "another" in (tmp_path / "x.svg").read_text()


# -- as a page


@pytest.fixture
def page(folders: tuple[Path, Path], tmp_path: Path) -> str:
    done = call(*folders, "--html", tmp_path / "changes.html")
    assert done.exit_code == 0, done.output
    return (tmp_path / "changes.html").read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_from_elsewhere(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)', page)


def test_the_page_has_every_cell_with_both_figures_their_ratio_and_its_interval(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())
    assert "100 → 50.0" in text
    assert "100 → failed" in text
    assert "absent → 100" in text
    assert "another node: yes, GPUs GPU-aaaaaaaa in the base" in text
    assert "m · short · 8 concurrent" in text
    assert re.search(r'<td class="worse"><b>0\.500</b><small>\[0\.4', page)
    assert page.count('<td class="one-start">') == 3  # tok/s, TTFT and TPOT of tp2


def test_the_page_draws_an_interval_only_where_there_is_one(page: str) -> None:
    rows = dict(re.findall(r'<th scope="row">(\w+)</th>(.*?)</tr>', page, re.S))
    assert "<svg" in rows["tp4"]
    assert "<svg" not in rows["tp2"] + rows["pp4"] + rows["dp4"]


def test_the_page_escapes_what_manifests_and_paths_say(page: str) -> None:
    assert "<Tree>" not in page
    assert "&lt;Tree&gt;" in page
    assert "<new>" not in page


def test_a_page_needs_two_results_with_cells_in_common_and_a_place(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for arguments, said in (
        ((folders[0], "--html", tmp_path / "x.html"), "give two folders with cells in common"),
        ((*folders, "--html", tmp_path / "none" / "x.html"), "give another --html"),
    ):
        done = call(*arguments)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


def test_both_results_are_concluded_in_a_sentence(page: str) -> None:
    assert (
        '<p class="headline worse">Of 3 cells that both have, the new result&#39;s tokens per '
        "second are worse in 1 (tp4 at 8 concurrent: 0.500); not shown to differ in 1; known of "
        "one start in 1: at 95% confidence over starts, each cell by itself.</p>" in page
    )


def concluded(base: list[Summary], new: list[Summary]) -> Conclusion:
    return conclusion(changes(TwoResults(cells_of(base), cells_of(new), Surroundings())))


def test_the_conclusion_says_what_is_better_and_what_is_not_known() -> None:
    assert concluded(starts(STEADY), starts([200.0, 201.0])).word == "better"
    assert concluded(starts(STEADY), starts(STEADY)).word == "equal"
    both = concluded(
        [*starts(STEADY), *starts(STEADY, "pp4")],
        [*starts([50.0, 51.0]), *starts([300, 301], "pp4")],
    )
    assert both.word == "mixed"
    assert "No cell has" in concluded(starts(STEADY), starts([None])).sentence
