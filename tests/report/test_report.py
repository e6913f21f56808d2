"""The page: what is in it, and what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import MEGABYTE, data_of, text_of
from report_inputs import CONCURRENCIES, LAYOUTS, write_results

from orchestrator import cli
from orchestrator.commands.results import write_report
from orchestrator.report import html
from orchestrator.report.html import render_html
from orchestrator.report.output import Output


def test_the_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)', text)
    assert "sourceMappingURL" not in text


def test_the_page_tells_failures_with_their_reason_and_escapes_it(page: Path) -> None:
    assert "out_of_memory: &lt;rank 3&gt;" in page.read_text()
    assert page.read_text().count('class="failed"') == len(CONCURRENCIES)


def test_results_of_a_command_that_was_stopped_before_a_run_ended_are_told(tmp_path: Path) -> None:
    write_results(tmp_path, layouts=())
    asked = CliRunner().invoke(cli.main, ["report", str(tmp_path)])
    assert asked.exit_code == 2
    assert "no run of it has ended; the same `orchestrator submit` again goes on" in asked.stderr
    assert not (tmp_path / html.REPORT).exists()
    compared = CliRunner().invoke(cli.main, ["compare", str(tmp_path)])
    assert "There is nothing to compare: no run of it has ended" in compared.stdout


def test_the_data_are_there_once_and_whole(page: Path) -> None:
    data = data_of(page)
    assert len(data["cells"]) == len(LAYOUTS) * len(CONCURRENCIES)
    assert len(data["latencies"]) == 3 * 3 * len(CONCURRENCIES)
    assert [layout["name"] for layout in data["layouts"]] == ["dp4", "pp4", "tp2pp2", "tp4"]
    assert {row["rank"] for row in data["memory"]} == {0, 1, 2, 3}
    assert (
        data["memory"][0]["weight"] + data["memory"][0]["kv"] + data["memory"][0]["rest"]
        == data["memory"][0]["peak"]
    )


def test_one_figure_is_told_of_a_cell_the_mean_of_its_runs(page: Path) -> None:
    cell = next(
        cell
        for cell in data_of(page)["cells"]
        if (cell["layout"], cell["concurrency"]) == ("tp4", 1)
    )
    assert (cell["throughput"], cell["best"]) == (10.05, 10.1)
    tables = data_of(page)["tables"]["comparison"]
    rows = [dict(zip(tables["columns"], row, strict=True)) for row in tables["rows"]]
    assert (
        next(row for row in rows if row["layout"] == "tp4" and row["max_concurrency"] == 1)[
            "output_throughput"
        ]
        == 10.05
    )


def test_what_the_page_says_beside_the_figures(page: Path) -> None:
    said = text_of(page)
    for words in (
        "Every layout had one start",
        "from rates measured on these devices",
        "Communication by operation",
        "all-reduce",
        "The same, with something taken out",
        "collectives 10.0 8.00 20.0% 14.3%",  # 14% of what is no bubble, 98%
        "GPU 0\u20133",
        "Power limit 700 W",
        "SM clock, at most 1,980 MHz",
        "0\u20133: Test GPU, 80.0 GB",
    ):
        assert words in said, words
    columns = re.findall(r'<th scope="col" title="([^"]+)"', page.read_text())
    assert len(columns) == 15
    assert all(f"<dd>{meaning}" in page.read_text() for meaning in columns)


def test_a_row_above_its_bound_keeps_the_bound_beside_its_reason(odd: Path) -> None:
    cell = next(
        cell
        for cell in data_of(odd)["cells"]
        if (cell["layout"], cell["concurrency"]) == ("pp4", 8)
    )
    assert (cell["status"], cell["throughput"], cell["bound"]) == ("invalid", None, 62.5)
    row = re.search(r'<tr data-layout="pp4" class="invalid">(.*?)</tr>', odd.read_text(), re.S)
    assert row
    assert ">of 62.5<" in row[1]
    assert "above its bound of 99" in text_of(odd)


def test_energy_that_is_left_out_has_its_reason(odd: Path) -> None:
    said = text_of(odd)
    assert "Energy of tp4: 1 of 2 runs left out (run of 1.9 s is under 20 samples)." in said
    assert "one of its runs failed: a worker died" in said


def test_the_conditions_of_a_load_are_beside_its_table(odd: Path) -> None:
    said = text_of(odd)
    assert "Clocks held down by the power cap: tp4 in 96% of samples." in said
    assert (
        "Cross-check of tp4 failed in a run: NVLink counters saw 1.31 of the bytes counted, 1.00 "
        "expected." in said
    )


def test_a_run_on_cpus_says_that_it_is_no_ranking(tmp_path: Path, page: Path) -> None:
    on_cpu = render_html(
        write_results(tmp_path / "tiny", ("tp2", "pp2"), (2,), device="cpu", ranks=2)
    )
    assert "no ranking" in " ".join(on_cpu.read_text().split())
    assert "no ranking" not in " ".join(page.read_text().split())


def test_the_command_writes_the_page_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.main, ["report", str(folder), "--out", str(tmp_path / "page.html")]
    )
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size < 2 * MEGABYTE
    for bad in ([str(tmp_path)], [str(folder), "--out", str(tmp_path / "no" / "page.html")]):
        refused = CliRunner().invoke(cli.main, ["report", *bad])
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


def test_a_report_that_fails_takes_nothing_from_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Path | None) -> Path:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(html, "render_html", fail)
    write_report(folder, Output().console())
    assert capsys.readouterr().err == "note: the report could not be made: no room.\n"
