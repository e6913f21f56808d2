"""The page: what is in it, what it weighs, and, in a browser without a network, what it draws."""

from __future__ import annotations

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
from report_inputs import write_results

from orchestrator import cli, metrics
from orchestrator.report import figures, html
from orchestrator.report.html import render_html
from workers.plan import Built

CHARTS = ("throughput", "tradeoff", "step", "timeline", "latencies", "memory", "telemetry")
LAYOUTS, CONCURRENCIES = ("tp4", "pp4", "tp2pp2", "dp4"), (1, 8, 32)
MEGABYTE = 10**6


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


# -- the figures ------------------------------------------------------------------------------------------------


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert figures.pareto_front([(1, 9), (5, 5), (9, 1), (4, 4), (5, 4), (None, 99)]) == {0, 1, 2}
    assert figures.pareto_front([]) == set()


def test_latencies_of_requests_need_as_many_tokens_as_they_span() -> None:
    rows = [{"arrival_s": 1.0, "token_times_s": times} for times in ([1.5, 1.6, 1.8], [2.0], [], None)]
    found = figures.request_latencies(pa.Table.from_pylist(rows))
    np.testing.assert_allclose(found["ttft"], [500, 1000, np.nan, np.nan])
    np.testing.assert_allclose(found["tpot"], [150, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(found["e2el"], [800, 1000, np.nan, np.nan])


def test_a_timeline_joins_compute_and_gives_up_steps_before_it_gives_up_time() -> None:
    rows = [
        {"rank": 0, "phase": "decode", "step": step, "kind": kind, "start_us": 100.0 * step + begin, "end_us": 100.0 * step + end}
        for step in range(5)
        for kind, begin, end in (("compute", 0.0, 40.0), ("compute", 40.0, 90.0), ("send", 90.0, 100.0))
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
    built = [Built(rank, 1.0, 1.0, weight_bytes=100 + rank, kv_tokens=64, device_name="cpu") for rank in (1, 0)]
    columns = metrics.of_ranks(built, plan(2))
    assert columns["weight_bytes_per_rank"] == [100, 101]
    keys_and_values, layers, heads, dim, size = 2, 2, 4, 2, 4
    assert columns["kv_bytes_per_rank"] == [64 * keys_and_values * layers * heads * dim * size] * 2
    assert metrics.of_ranks([Built(0, 1.0, 1.0, 100, 0, "cpu")], plan(1))["kv_bytes_per_rank"] is None


# -- the page ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results") / "tiny-0123456789", LAYOUTS, CONCURRENCIES, failing=("dp4",))


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
    assert data["memory"][0]["weight"] + data["memory"][0]["kv"] + data["memory"][0]["rest"] == data["memory"][0]["peak"]


def test_a_run_on_cpus_says_that_it_is_no_ranking(tmp_path: Path, page: Path) -> None:
    on_cpu = render_html(write_results(tmp_path / "tiny", ("tp2", "pp2"), (2,), device="cpu", ranks=2))
    assert "no ranking" in " ".join(on_cpu.read_text().split())
    assert "no ranking" not in " ".join(page.read_text().split())


def test_the_command_writes_the_page_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["report", str(folder), "--out", str(tmp_path / "page.html")])
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
    cli._write_report(folder, cli._console())
    assert capsys.readouterr().err == "note: the report could not be made: no room\n"


# -- in a browser -----------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed to open the page with")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def marks(chromium: browser.Browser, chart: str, kind: str) -> int:
    return chromium.evaluate(f"document.querySelectorAll('[data-chart={chart}] .mark-{kind} path').length")


def rows(chromium: browser.Browser, chart: str) -> int:
    return len(chromium.evaluate(f"report.csv('{chart}')").strip().splitlines()) - 1


def choose(chromium: browser.Browser, name: str, value: str) -> None:
    chromium.evaluate(
        f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = '{value}';"
        " s.dispatchEvent(new Event('change', { bubbles: true })); delete document.body.dataset.ready; })()"
    )


@in_browser
def test_every_chart_is_drawn_without_a_complaint_or_a_request(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    for chart in CHARTS:
        assert chromium.evaluate(f"document.querySelectorAll('[data-chart={chart}] svg').length"), chart
        assert chromium.evaluate(f"document.getElementById('{chart}').innerText").find("NaN") < 0
    assert chromium.complaints == []
    assert chromium.requests == [page.resolve().as_uri()]


@in_browser
def test_charts_hold_as_many_marks_and_rows_as_there_are_results(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    cells = 3 * len(CONCURRENCIES)
    assert rows(chromium, "throughput") == marks(chromium, "throughput", "symbol") == cells
    assert rows(chromium, "tradeoff") == marks(chromium, "tradeoff", "symbol") == cells
    assert rows(chromium, "step") == marks(chromium, "step", "rect") == 3 * 5
    assert rows(chromium, "timeline") == marks(chromium, "timeline", "rect") == 3 * 4 * 3 * 6 * 2
    assert rows(chromium, "memory") == 3 * 4
    assert marks(chromium, "memory", "rect") == 3 * 4 * 3
    assert rows(chromium, "comparison") == len(LAYOUTS) * len(CONCURRENCIES)


@in_browser
def test_selects_and_check_boxes_change_what_is_drawn(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    choose(chromium, "concurrency", "8")
    chromium.wait("document.querySelector('[data-note=step]').textContent.includes('8 concurrent')")
    assert chromium.evaluate("report.csv('step').trim().split('\\n').every((line, i) => !i || line.split(',')[1] === '8')")
    choose(chromium, "phase", "prefill")
    assert "prefill" in chromium.evaluate("report.csv('step')")
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    assert rows(chromium, "throughput") == 2 * len(CONCURRENCIES)
    chromium.wait("document.querySelectorAll('[data-chart=throughput] .mark-symbol path').length === 6")


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
def test_the_page_fits_a_phone_and_a_laptop_in_light_and_dark(chromium: browser.Browser, page: Path) -> None:
    seen = set()
    for width, dark in ((390, False), (1366, False), (1366, True)):
        chromium.open(page, width=width, dark=dark)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        seen.add(chromium.evaluate("getComputedStyle(document.querySelector('.mark-text text')).fill"))
    assert len(seen) == 2


@in_browser
def test_the_page_prints(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    chromium.open(page, dark=True)
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
    assert chromium.complaints == []


@in_browser
def test_eight_layouts_at_ten_concurrencies_are_small_and_open_at_once(chromium: browser.Browser, tmp_path: Path) -> None:
    layouts = ("tp8", "pp8", "dp8", "tp4pp2", "tp2pp4", "tp4dp2", "tp2dp4", "tp2pp2dp2")
    big = write_results(tmp_path / "big", layouts, [2**i for i in range(10)], ranks=8, served=40, calls=60, samples=150)
    page = render_html(big)
    assert page.stat().st_size < 10 * MEGABYTE
    start = time.monotonic()
    chromium.open(page)
    assert time.monotonic() - start < 10
    assert rows(chromium, "throughput") == 80
    assert rows(chromium, "timeline") <= figures.MAX_BARS
    assert chromium.complaints == []
