"""The page: what is in it, what it weighs, and, in a browser without a network, what it draws."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from driver_inputs import plan
from orchestrator.store.results import Store
from report_inputs import summary, write_results

from orchestrator import cli, commands
from orchestrator.analysis import metrics
from orchestrator.analysis.accounting import TIMED
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.report import environment, figures, html
from orchestrator.report.html import render_html
from orchestrator.report.output import Output
from workers.messages import Built
from workers.records import to_table

CHARTS = ("throughput", "tradeoff", "step", "timeline", "latencies", "memory", "telemetry")
LAYOUTS, CONCURRENCIES = ("tp4", "pp4", "tp2pp2", "dp4"), (1, 8, 32)
MEGABYTE = 10**6


def data_of(page: Path) -> dict:
    return json.loads(
        re.search(
            r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S
        )[1]
    )


# -- the figures


NAMED = {
    "experiment": "e",
    "model": "m",
    "strategy": "pp2",
    "engine": "torch",
    "dtype": "bfloat16",
    "scenario": "short",
}
CELL = {**NAMED, "quantization": "none", "ablation": "none", "max_concurrency": 8}


def test_from_token_to_token_a_stage_takes_a_step_for_each_micro_batch() -> None:
    steps = [
        {**CELL, "rank": rank, "phase": "decode", "micro_batch": micro_batch}
        for rank in (0, 1)
        for micro_batch in (0, 1, 0, 1)
    ]
    steps += [{**CELL, "rank": 0, "phase": "prefill", "micro_batch": 2}]
    in_flight = figures.micro_batches(pa.Table.from_pylist(steps))
    assert in_flight == {(figures.key(CELL), 0): 2, (figures.key(CELL), 1): 2}
    parts = [{**CELL, "rank": rank, "phase": "decode", "step_ms": 9.0 + rank} for rank in (0, 1)]
    assert figures.token_times(parts, in_flight) == {figures.key(CELL): 19.0}
    assert figures.token_times(parts, {}) == {}
    assert figures.micro_batches(None) == {}


def test_calls_are_told_as_the_mean_over_ranks_and_of_the_worst_one() -> None:
    common = {
        **CELL,
        "phase": "decode",
        "op": "all_reduce",
        "axis": "tp",
        "group_size": 2,
        "calls": 4,
    }
    rows = [
        {
            **common,
            "rank": 0,
            "bytes": 400,
            "transfer_us": 5.0,
            "wait_us": 1.0,
            "algbw": 20.0,
            "busbw": 20.0,
        },
        {
            **common,
            "rank": 1,
            "bytes": 400,
            "transfer_us": 5.0,
            "wait_us": 3.0,
            "algbw": 10.0,
            "busbw": 10.0,
        },
    ]
    (found,) = figures.communication(pa.Table.from_pylist(rows), {figures.key(CELL): "pp2"})
    assert (found["calls"], found["bytes_per_call"]) == (4, 100)
    assert (found["wait_us"], found["wait_us_worst"], found["busbw"], found["busbw_worst"]) == (
        2,
        3,
        15,
        10,
    )
    unseen = [
        {
            **common,
            "rank": 0,
            "bytes": None,
            "transfer_us": None,
            "wait_us": None,
            "algbw": None,
            "busbw": None,
        }
    ]
    (found,) = figures.communication(
        to_table(unseen, pa.unify_schemas([TIMED, pa.Table.from_pylist([CELL]).schema])),
        {figures.key(CELL): "pp2"},
    )
    assert found["bytes_per_call"] is found["busbw_worst"] is None


def test_gpus_of_a_kind_are_described_once() -> None:
    one = {"name": "A", "memory_bytes": 80 * 10**9, "power_limit_w": 700.0}
    gpus = [
        {**one, "index": 0},
        {**one, "index": 1},
        {**one, "index": 2, "power_limit_w": 500.0},
        {**one, "index": 3},
    ]
    found = environment._gpus(gpus)
    assert list(found) == ["GPU 0\u20131, 3", "GPU 2"]
    assert found["GPU 2"] == {"Name": "A", "Memory": "80.0 GB", "Power limit": "500 W"}


def test_latencies_of_requests_need_as_many_tokens_as_they_span() -> None:
    rows = [
        {"arrival_s": 1.0, "token_times_s": times} for times in ([1.5, 1.6, 1.8], [2.0], [], None)
    ]
    found = figures.request_latencies(pa.Table.from_pylist(rows))
    np.testing.assert_allclose(found["ttft"], [500, 1000, np.nan, np.nan])
    np.testing.assert_allclose(found["tpot"], [150, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(found["e2el"], [800, 1000, np.nan, np.nan])


def test_a_timeline_joins_compute_and_gives_up_steps_before_it_gives_up_time() -> None:
    rows = [
        {
            "rank": 0,
            "phase": "decode",
            "step": step,
            "kind": kind,
            "start_us": 100.0 * step + begin,
            "end_us": 100.0 * step + end,
        }
        for step in range(5)
        for kind, begin, end in (
            ("compute", 0.0, 40.0),
            ("compute", 40.0, 90.0),
            ("send", 90.0, 100.0),
        )
    ]
    assert len(figures.window(rows, 100)["bars"]) == 6
    two = figures.window(rows, 4)
    assert [bar[1] for bar in two["bars"]] == [3, 3, 4, 4]
    assert (two["bars"][0][3:], two["cut"]) == ([0.0, 90.0], False)
    assert figures.window(rows, 1)["cut"]


def test_samples_are_binned_so_that_each_bin_has_every_device() -> None:
    seconds, values = np.repeat(np.arange(10) / 10, 2), np.tile([400.0, 600.0], 10)
    found = figures.binned(seconds, values, 2)
    assert set(found["low"]) == {400.0}
    assert set(found["high"]) == {600.0}
    assert len(figures.binned(np.arange(1e4), np.ones(10000), 1)["s"]) == figures.SAMPLES


def test_memory_of_a_rank_is_what_it_was_built_with() -> None:
    built = [
        Built(rank, 1.0, 1.0, weight_bytes=100 + rank, kv_tokens=64, device_name="cpu")
        for rank in (1, 0)
    ]
    columns = metrics.of_ranks(built, plan(2))
    assert columns["weight_bytes_per_rank"] == [100, 101]
    keys_and_values, layers, heads, dim, size = 2, 2, 4, 2, 4
    assert columns["kv_bytes_per_rank"] == [64 * keys_and_values * layers * heads * dim * size] * 2
    assert (
        metrics.of_ranks([Built(0, 1.0, 1.0, 100, None, "cpu")], plan(1))["kv_bytes_per_rank"]
        is None
    )


# -- the page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "tiny-0123456789"
    return write_results(path, LAYOUTS, CONCURRENCIES, failing=("dp4",), ablated=("tp4",))


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return render_html(folder)


def test_the_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)', text)
    assert "sourceMappingURL" not in text


def test_the_page_tells_failures_with_their_reason_and_escapes_it(page: Path) -> None:
    assert "out_of_memory: &lt;rank 3&gt;" in page.read_text()
    assert page.read_text().count('class="failed"') == len(CONCURRENCIES)


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


def text_of(page: Path) -> str:
    """What is said outside of the data and the scripts."""
    return " ".join(
        re.sub(
            r"<[^>]+>", " ", page.read_text().split('<script type="application/json"')[0]
        ).split()
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
    assert "tok/s of the best run" in text_of(page)


def test_what_the_page_says_beside_the_figures(page: Path) -> None:
    said = text_of(page)
    for words in (
        "follow each other",
        "from rates measured on these devices",
        "Communication by operation",
        "all-reduce",
        "The same, with something taken out",
        "collectives 10.0 8.00 20.0% 14.0%",
        "GPU 0\u20133",
        "Power limit 700 W",
        "SM clock, at most 1,980 MHz",
        "0\u20133: Test GPU, 80.0 GB",
    ):
        assert words in said, words
    columns = re.findall(r'<th scope="col" title="([^"]+)"', page.read_text())
    assert len(columns) == 14
    assert all(f"<dd>{meaning}" in page.read_text() for meaning in columns)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results that need a word: an interval that reaches below 0, runs too short for energy, one
    above its bound."""
    path = write_results(tmp_path_factory.mktemp("odd") / "tiny", ("tp4", "pp4", "dp4"), (8, 32))
    store = Store(path)
    for layout, concurrency, index, changed in (
        (
            "tp4",
            8,
            0,
            {
                "output_throughput": 1.0,
                "power_valid": False,
                "power_reasons": "run of 1.9 s is under 20 samples",
            },
        ),
        ("tp4", 8, 1, {"throttled": True, "power_valid": True, "joules_per_output_token": 1.5}),
        ("pp4", 8, 0, {"status": "invalid", "reason": "above its bound of 99"}),
        ("pp4", 8, 1, {"status": "invalid", "reason": "above its bound of 99"}),
        ("dp4", 8, 1, {"status": "failed", "reason": "a worker died"}),
    ):
        run = Run(
            Cell(
                Deployment("tiny", layout, "torch", "bfloat16"),
                Scenario("short", 256, 128),
                concurrency,
            ),
            index,
        )
        store.write_run(run, {**summary(50.0, concurrency, 4, "cuda"), **changed}, {})
    return render_html(path)


def test_intervals_of_what_is_positive_do_not_reach_below_0(odd: Path) -> None:
    assert all(cell["low"] is None or cell["low"] >= 0 for cell in data_of(odd)["cells"])
    assert re.search(r">0\u2013\d", odd.read_text())
    assert not re.search(r">-\d[\d.]*\u2013", odd.read_text())


def test_a_row_above_its_bound_keeps_the_bound_beside_its_reason(odd: Path) -> None:
    cell = next(
        cell
        for cell in data_of(odd)["cells"]
        if (cell["layout"], cell["concurrency"]) == ("pp4", 8)
    )
    assert (cell["status"], cell["throughput"], cell["bound"]) == ("invalid", None, 62.5)
    row = re.search(r'<tr data-layout="pp4" class="invalid">(.*?)</tr>', odd.read_text(), re.S)
    assert row
    assert ">62.5<" in row[1]
    assert "above its bound of 99" in text_of(odd)


def test_energy_that_is_left_out_has_its_reason(odd: Path) -> None:
    said = text_of(odd)
    assert "Energy of tp4: 1 of 2 runs left out (run of 1.9 s is under 20 samples)." in said
    assert (
        "Clocks were held down, by the power limit, heat or a fault, under tp4 (1 of 2 runs)."
        in said
    )
    assert "one of its runs failed: a worker died" in said


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
    def fail(_: Path) -> Path:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(html, "render_html", fail)
    commands.write_report(folder, Output().console())
    assert capsys.readouterr().err == "note: the report could not be made: no room\n"


# -- in a browser

in_browser = pytest.mark.skipif(
    browser.executable() is None, reason="no Chromium is installed to open the page with"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def marks(chromium: browser.Browser, chart: str, kind: str) -> int:
    return chromium.evaluate(
        f"document.querySelectorAll('[data-chart={chart}] .mark-{kind} path').length"
    )


def rows(chromium: browser.Browser, chart: str, whole: bool = False) -> int:
    return len(table(chromium, chart, whole))


def table(chromium: browser.Browser, chart: str, whole: bool = False) -> list[dict[str, str]]:
    """What a button downloads."""
    return list(
        csv.DictReader(
            io.StringIO(chromium.evaluate(f"report.csv('{chart}', {json.dumps(whole)})"))
        )
    )


def choose(chromium: browser.Browser, name: str, value: str) -> None:
    chromium.evaluate(
        f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = '{value}';"
        " s.dispatchEvent(new Event('change', { bubbles: true })); delete "
        "document.body.dataset.ready; })()"
    )


@in_browser
def test_every_chart_is_drawn_without_a_complaint_or_a_request(
    chromium: browser.Browser, page: Path
) -> None:
    chromium.open(page)
    for chart in CHARTS:
        assert chromium.evaluate(f"document.querySelectorAll('[data-chart={chart}] svg').length"), (
            chart
        )
        assert chromium.evaluate(f"document.getElementById('{chart}').innerText").find("NaN") < 0
    assert chromium.complaints == []
    assert chromium.requests == [page.resolve().as_uri()]


@in_browser
def test_charts_hold_as_many_marks_and_rows_as_there_are_results(
    chromium: browser.Browser, page: Path
) -> None:
    chromium.open(page)
    cells = 3 * len(CONCURRENCIES)
    assert rows(chromium, "throughput") == marks(chromium, "throughput", "symbol") == cells
    assert rows(chromium, "tradeoff") == marks(chromium, "tradeoff", "symbol") == cells
    assert rows(chromium, "step") == 3
    assert marks(chromium, "step", "rect") == 3 * 5
    assert (
        chromium.evaluate("document.querySelectorAll('[data-figures=step] tbody tr').length") == 3
    )
    assert rows(chromium, "timeline") == marks(chromium, "timeline", "rect") == 3 * 4 * 3 * 6 * 2
    assert rows(chromium, "memory") == 3 * 4
    assert marks(chromium, "memory", "rect") == 3 * 4 * 3
    assert rows(chromium, "comparison") == len(LAYOUTS) * len(CONCURRENCIES)


@in_browser
def test_selects_and_check_boxes_change_what_is_drawn(
    chromium: browser.Browser, page: Path
) -> None:
    chromium.open(page)
    choose(chromium, "concurrency", "8")
    chromium.wait("document.querySelector('[data-note=step]').textContent.includes('8 concurrent')")
    assert {row["concurrency"] for row in table(chromium, "step")} == {"8"}
    choose(chromium, "phase", "prefill")
    assert {row["phase"] for row in table(chromium, "step")} == {"prefill"}
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    assert rows(chromium, "throughput") == 2 * len(CONCURRENCIES)
    chromium.wait(
        "document.querySelectorAll('[data-chart=throughput] .mark-symbol path').length === 6"
    )


@in_browser
def test_steps_are_as_long_as_from_one_token_to_the_next(
    chromium: browser.Browser, page: Path
) -> None:
    chromium.open(page)
    found = {row["layout"]: row for row in table(chromium, "step")}
    assert {name: row["token_to_token_ms"] for name, row in found.items()} == {
        "pp4": "40",
        "tp2pp2": "10",
        "tp4": "10",
    }
    assert found["pp4"]["micro_batches"] == "4"
    ends = (
        "[...document.querySelectorAll('[data-chart=step] .mark-text text')].map((text) => "
        "text.textContent)"
    )
    assert (
        chromium.evaluate(f"{ends}.filter((text) => text.endsWith(' ms')).sort().join()")
        == "10 ms,10 ms,40 ms"
    )


@in_browser
def test_the_front_is_that_of_the_layouts_shown(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    for best in ("tp4", "pp4", "tp2pp2"):
        shown = table(chromium, "tradeoff")
        assert {row["layout"] for row in shown if row["on_front"] == "true"} == {best}
        for row in shown:
            mine = [float(row[f"tokens_per_second_per_{per}"]) for per in ("user", "gpu")]
            others = [
                [float(other[f"tokens_per_second_per_{per}"]) for per in ("user", "gpu")]
                for other in shown
            ]
            beaten = any(
                other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in others
            )
            assert beaten == (row["on_front"] == "false")
        chromium.evaluate(f"document.querySelector('input[value={best}]').click()")


@in_browser
def test_everything_can_be_downloaded_not_only_what_is_shown(
    chromium: browser.Browser, page: Path
) -> None:
    chromium.open(page)
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    cells = 3 * len(CONCURRENCIES)
    assert (
        rows(chromium, "throughput", whole=True) == rows(chromium, "tradeoff", whole=True) == cells
    )
    assert {row["phase"] for row in table(chromium, "step", whole=True)} == {"decode", "prefill"}
    assert rows(chromium, "memory", whole=True) == 4 * cells
    assert rows(chromium, "latencies", whole=True) == 3 * 101 * cells
    assert rows(chromium, "comparison", whole=True) == len(LAYOUTS) * len(CONCURRENCIES)
    verdicts = table(chromium, "findings", whole=True)
    assert {row["best"] for row in verdicts if row["metric"] == "output_throughput"} == {"tp4"}
    assert {
        row["name"]: row["best_point"] for row in table(chromium, "sweep", whole=True)
    }.keys() == {"tp4", "pp4", "tp2pp2"}
    assert [float(row["saved_pct"]) for row in table(chromium, "ablations")] == pytest.approx(
        [20.0] * len(CONCURRENCIES)
    )
    operations = table(chromium, "communication", whole=True)
    assert len(operations) == 2 * cells
    assert (
        operations[0] | {"wait_us": "15", "wait_us_worst": "30", "bytes_per_call": "2000000"}
        == operations[0]
    )
    wanted = (
        "[...document.querySelectorAll('[data-csv], [data-all]')].map((one) => one.dataset.csv || "
        "one.dataset.all)"
    )
    for name in set(chromium.evaluate(wanted)):
        assert rows(chromium, name, whole=True), name


@in_browser
def test_operations_are_those_of_the_chosen_load_in_colours_of_their_own(
    chromium: browser.Browser, page: Path
) -> None:
    chromium.open(page)
    seen = (
        "[...document.querySelectorAll('#communication tbody:not([hidden]) "
        "tr[data-layout]:not([hidden])')].length"
    )
    assert chromium.evaluate(seen) == 3 * 2
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    assert chromium.evaluate(seen) == 2 * 2
    fills = (
        "[...document.querySelectorAll('#{} .key i')].slice(1).map((i) => "
        "getComputedStyle(i).backgroundColor)"
    )
    parts, operations = (
        set(chromium.evaluate(fills.format(chart))) for chart in ("step", "timeline")
    )
    assert len(parts) == 4
    assert operations
    assert not parts & operations


@in_browser
def test_bounds_are_drawn_unless_they_are_left_out(
    chromium: browser.Browser, page: Path, odd: Path
) -> None:
    chromium.open(page)
    assert marks(chromium, "throughput", "rect") == 3 * len(CONCURRENCIES)
    assert "measured on these devices" in chromium.evaluate(
        "document.querySelector('[data-note=throughput]').textContent"
    )
    choose(chromium, "bounds", "hidden")
    chromium.wait(
        "document.querySelectorAll('[data-chart=throughput] .mark-rect path').length === 0"
    )
    chromium.open(odd)
    assert (marks(chromium, "throughput", "symbol"), marks(chromium, "throughput", "rect")) == (
        5,
        6,
    )
    assert chromium.complaints == []


@in_browser
def test_controls_work_from_the_keyboard(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    chromium.evaluate("document.querySelector('input[value=pp4]').focus()")
    chromium.press(" ")
    assert "pp4" not in chromium.evaluate("report.csv('throughput')")
    chromium.press("Tab")
    assert chromium.evaluate("document.activeElement.value") == "tp2pp2"
    chromium.evaluate("document.querySelector('select[name=concurrency]').focus()")
    chromium.press("ArrowUp")
    chromium.wait("report.state.concurrency === 8")


@in_browser
def test_the_page_fits_a_phone_and_a_laptop_in_light_and_dark(
    chromium: browser.Browser, page: Path
) -> None:
    seen = set()
    for width, dark in ((390, False), (1366, False), (1366, True)):
        chromium.open(page, width=width, dark=dark)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        seen.add(
            chromium.evaluate("getComputedStyle(document.querySelector('.mark-text text')).fill")
        )
    assert len(seen) == 2


@in_browser
def test_no_table_is_cut_off_on_a_laptop(chromium: browser.Browser, page: Path) -> None:
    cut = (
        "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > "
        "one.clientWidth).length"
    )
    for width in (1280, 1366):
        chromium.open(page, width=width)
        assert chromium.evaluate(cut) == 0


@in_browser
def test_the_page_prints(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    chromium.open(page, dark=True)
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
    assert chromium.complaints == []


@in_browser
def test_eight_layouts_at_ten_concurrencies_are_small_and_open_at_once(
    chromium: browser.Browser, tmp_path: Path
) -> None:
    layouts = ("tp8", "pp8", "dp8", "tp4pp2", "tp2pp4", "tp4dp2", "tp2dp4", "tp2pp2dp2")
    big = write_results(
        tmp_path / "big",
        layouts,
        [2**i for i in range(10)],
        ranks=8,
        served=40,
        calls=60,
        samples=150,
    )
    page = render_html(big)
    assert page.stat().st_size < 10 * MEGABYTE
    start = time.monotonic()
    chromium.open(page)
    assert time.monotonic() - start < 10
    assert rows(chromium, "throughput") == 80
    assert rows(chromium, "timeline") <= figures.MAX_BARS
    assert chromium.complaints == []
