"""The page in a browser without a network: what it draws, and what can be done with it."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path

import pytest
from browser import WIDTHS, Chromium
from pages import DATA, MEGABYTE, data_of
from report_inputs import CONCURRENCIES, LAYOUTS, write_results

from orchestrator.report.charts.timeline import MAX_BARS
from orchestrator.report.html import render_html

CHARTS = (
    "cost",
    "throughput",
    "concurrency",
    "tradeoff",
    "step",
    "timeline",
    "latencies",
    "memory",
    "telemetry",
)


def marks(chromium: Chromium, chart: str, kind: str) -> int:
    return chromium.evaluate(
        f"document.querySelectorAll('[data-chart={chart}] .mark-{kind} path').length"
    )


def rows(chromium: Chromium, chart: str, whole: bool = False) -> int:
    return len(table(chromium, chart, whole))


def table(chromium: Chromium, chart: str, whole: bool = False) -> list[dict[str, str]]:
    """What a button downloads."""
    return list(
        csv.DictReader(
            io.StringIO(chromium.evaluate(f"report.csv('{chart}', {json.dumps(whole)})"))
        )
    )


def test_every_chart_is_drawn_without_a_complaint_or_a_request(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    for chart in CHARTS:
        assert chromium.evaluate(f"document.querySelectorAll('[data-chart={chart}] svg').length"), (
            chart
        )
        assert chromium.evaluate(f"document.getElementById('{chart}').innerText").find("NaN") < 0
    assert chromium.complaints == []
    assert chromium.requests == [page.resolve().as_uri()]


def test_charts_hold_as_many_marks_and_rows_as_there_are_results(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    cells = 3 * len(CONCURRENCIES)
    assert rows(chromium, "throughput") == 3
    assert marks(chromium, "throughput", "rect") == 3 * 2  # a bar, and a tick at its bound
    assert rows(chromium, "concurrency") == marks(chromium, "concurrency", "symbol") == cells
    assert rows(chromium, "tradeoff") == marks(chromium, "tradeoff", "symbol") == cells
    assert rows(chromium, "cost") == 3
    assert marks(chromium, "cost", "rect") == 3 * (10 + 1)  # parts, and a tick at the total
    assert rows(chromium, "step") == 3
    assert marks(chromium, "step", "rect") == 3 * 5
    assert (
        chromium.evaluate("document.querySelectorAll('[data-figures=step] tbody tr').length") == 3
    )
    assert rows(chromium, "timeline") == 3 * 4 * 3 * 6 * 2
    assert marks(chromium, "timeline", "rect") == 3 * 4 * 3 * 6 * 2 + 3 * 4  # what is recorded
    assert rows(chromium, "memory") == 3 * 4
    assert marks(chromium, "memory", "rect") == 3 * 4 * 3
    assert rows(chromium, "comparison") == len(LAYOUTS) * len(CONCURRENCIES)


def test_selects_and_check_boxes_change_what_is_drawn(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    chromium.choose("concurrency", 8)
    chromium.wait("document.querySelector('[data-note=step]').textContent.includes('8 concurrent')")
    assert {row["concurrency"] for row in table(chromium, "step")} == {"8"}
    chromium.choose("phase", "prefill")
    assert {row["phase"] for row in table(chromium, "step")} == {"prefill"}
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    assert rows(chromium, "concurrency") == 2 * len(CONCURRENCIES)
    chromium.wait(
        "document.querySelectorAll('[data-chart=concurrency] .mark-symbol path').length === 6"
    )


def test_steps_are_as_long_as_from_one_token_to_the_next(chromium: Chromium, page: Path) -> None:
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


def test_the_parts_of_a_token_sum_to_its_cost_and_a_negative_rest_lies_left_of_zero(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    found = table(chromium, "cost")
    assert {row["unit"] for row in found} == {"GPU-ms"}
    for row in found:
        parts = [float(value) for name, value in row.items() if name.endswith("_ms") and value]
        assert sum(parts) == pytest.approx(float(row["device_ms_per_token"]), rel=0.01)
        assert float(row["rest_ms"]) < 0
    ticks = (
        "[...document.querySelectorAll('[data-chart=cost] .role-axis-label text')].map((text) => "
        "text.textContent)"
    )
    assert chromium.evaluate(f"{ticks}.some((text) => text.startsWith('\u2212'))")
    shown = "document.querySelectorAll('[data-figures=cost] tbody tr').length"
    assert chromium.evaluate(shown) == 3


def test_without_any_device_time_there_is_no_chart_of_it(
    chromium: Chromium, tmp_path: Path
) -> None:
    chromium.open(render_html(write_results(tmp_path / "none", ("tp4",), (1,), failing=("tp4",))))
    assert chromium.evaluate("document.getElementById('cost').hidden")
    assert chromium.complaints == []


def test_the_front_is_that_of_the_layouts_shown(chromium: Chromium, page: Path) -> None:
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


def test_everything_can_be_downloaded_not_only_what_is_shown(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    cells = 3 * len(CONCURRENCIES)
    assert (
        rows(chromium, "throughput", whole=True) == rows(chromium, "tradeoff", whole=True) == cells
    )
    assert rows(chromium, "concurrency", whole=True) == cells
    assert {row["phase"] for row in table(chromium, "step", whole=True)} == {"decode", "prefill"}
    assert rows(chromium, "memory", whole=True) == 4 * cells
    assert rows(chromium, "latencies", whole=True) == 3 * 101 * cells
    assert rows(chromium, "comparison", whole=True) == len(LAYOUTS) * len(CONCURRENCIES)
    verdicts = table(chromium, "findings", whole=True)
    pairs = {(v["better"], v["other"]) for v in verdicts if v["metric"] == "output_throughput"}
    assert pairs == {("tp4", "pp4"), ("tp4", "tp2pp2"), ("pp4", "tp2pp2")}
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


def test_operations_are_those_of_the_chosen_load_in_colours_of_their_own(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    seen = (
        "[...document.querySelectorAll('#communication table:first-of-type:not(.waits) "
        "tbody:not([hidden]) "
        "tr[data-layout]:not([hidden])')].length"
    )
    assert chromium.evaluate(seen) == 3 * 2
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    assert chromium.evaluate(seen) == 2 * 2
    fills = (
        "[...document.querySelectorAll('#{} .key rect')].slice(1).map((one) => "
        "getComputedStyle(one).fill)"
    )
    parts, operations = (
        set(chromium.evaluate(fills.format(chart))) for chart in ("step", "timeline")
    )
    assert len(parts) == 4
    assert operations
    assert not parts & operations


def test_bounds_and_predictions_stand_beside_what_was_measured(
    chromium: Chromium, page: Path, odd: Path, predicted: Path
) -> None:
    note = "document.querySelector('[data-note=throughput]').textContent"
    panels = "document.querySelectorAll('[data-chart=throughput] .panel').length"
    chromium.open(page)
    assert "measured on these devices" in chromium.evaluate(note)
    assert chromium.evaluate(panels) == 1
    chromium.open(odd, where="#concurrency=8")
    assert marks(chromium, "throughput", "rect") == 2 + 3  # pp4 is above its bound and has no bar
    chromium.open(predicted)
    assert chromium.evaluate(panels) == 3  # tokens per second and both latencies
    assert marks(chromium, "throughput", "symbol") == 2 * 2  # no prediction of a first token
    found = {row["layout"]: row for row in table(chromium, "throughput")}
    assert found["tp4"]["predicted_tokens_per_second_low"] == "9"
    assert chromium.complaints == []


def test_there_is_nothing_against_concurrency_where_there_is_one(
    chromium: Chromium, predicted: Path
) -> None:
    chromium.open(predicted)
    assert chromium.evaluate("document.getElementById('concurrency').offsetParent === null")
    links = "[...document.querySelectorAll('.contents a')].map((one) => one.hash)"
    assert "#concurrency" not in chromium.evaluate(links)
    assert "#throughput" in chromium.evaluate(links)


def test_a_link_shows_what_was_chosen(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    assert chromium.evaluate("location.hash") == ""
    chromium.choose("concurrency", 8)
    chromium.choose("phase", "prefill")
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    chromium.tab.get_by_role("button", name="TPOT ms").click()
    link = chromium.evaluate("location.hash")
    order = "[...document.querySelectorAll('#comparison tbody:not([hidden]) tr[data-layout]')]"
    order += ".map((row) => row.dataset.layout).join()"
    chosen = ("concurrency", "phase", "zoom", "latency", "without")
    assert all(f"{name}=" in link for name in chosen)  # a link does without what pages begin with
    shown = [table(chromium, name) for name in ("step", "throughput", "comparison")]
    rows_in_order = chromium.evaluate(order)
    chromium.open(page, where=link)
    assert [table(chromium, name) for name in ("step", "throughput", "comparison")] == shown
    assert chromium.evaluate(order) == rows_in_order
    assert {row["phase"] for row in shown[0]} == {"prefill"}
    assert {row["layout"] for row in shown[1]} == {"pp4", "tp2pp2"}
    chromium.evaluate("location.hash = '#concurrency=1'")  # another link in the same tab
    chromium.wait("window.report && document.body.dataset.ready && report.state.concurrency === 1")
    chromium.open(page, where="#concurrency=77&phase=x&without=none&sort=a.b.c")
    assert len(table(chromium, "step")) == 3
    assert chromium.complaints == []


def test_a_link_to_a_section_stays_one(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    chromium.tab.get_by_role("link", name="Memory").click()
    assert chromium.evaluate("location.hash") == "#at=memory"
    for where in ("#at=memory", "#memory"):
        chromium.open(page, where=where)
        top = chromium.evaluate("document.getElementById('memory').getBoundingClientRect().top")
        assert -50 < top < 450, where
        assert chromium.evaluate("document.activeElement.id") == "memory"  # the keyboard is there


def test_rows_follow_the_column_that_is_clicked(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    column = (
        "[...document.querySelectorAll('#comparison tbody:not([hidden]):first-of-type')]"
        ".flatMap((body) => [...body.querySelectorAll('tr[data-layout]:not(.aside)')])"
        ".map((row) => row.dataset.layout).join()"
    )
    head = chromium.tab.locator("#comparison").get_by_role("button", name="tok/s", exact=True)
    head.click()
    assert chromium.evaluate(column) == "tp4,pp4,tp2pp2,dp4"  # of dp4 there is no figure
    head.click()
    assert chromium.evaluate(column) == "tp2pp2,pp4,tp4,dp4"
    sorted_by = "document.querySelector('#comparison [aria-sort]').getAttribute('aria-sort')"
    assert chromium.evaluate(sorted_by) == "ascending"
    figures = chromium.tab.locator("#cost .figures")
    figures.get_by_role("button", name="layout").click()
    chromium.choose("concurrency", 8)
    first = "document.querySelector('#cost .figures tbody th').textContent"
    assert chromium.evaluate(first) == "pp4"  # the order outlives a table


def test_a_wide_table_tells_that_there_is_more_of_it(chromium: Chromium, page: Path) -> None:
    cues = "[...document.querySelectorAll('.cue')].filter((one) => one.offsetParent).length"
    wide = (
        "[...document.querySelectorAll('.scroll')].filter((one) => one.offsetParent && "
        "one.scrollWidth > one.clientWidth + 1).length"
    )
    for width in WIDTHS:
        chromium.open(page, width)
        assert chromium.evaluate(cues) == chromium.evaluate(wide)
        assert (chromium.evaluate(cues) > 0) == (width == 390)
    chromium.evaluate("document.querySelector('#comparison .scroll').scrollTo(9999, 0)")
    chromium.wait("document.querySelector('#comparison .scroll').classList.contains('ended')")


def test_layouts_differ_without_colour(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    shapes = "[...document.querySelectorAll('.chip i path:last-child')].map((p) => p.outerHTML"
    shapes += ".replace(/var[^)]*./g, ''))"
    found = chromium.evaluate(shapes)
    assert len(set(found)) == len(found) == len(LAYOUTS)


@pytest.mark.parametrize(("chart", "where"), [("telemetry", ""), ("latencies", "#latency=curves")])
def test_lines_have_the_marks_of_their_layouts(
    chromium: Chromium, page: Path, chart: str, where: str
) -> None:
    chromium.open(page, where=where)
    panels = f"document.querySelectorAll('[data-chart={chart}] .panel').length"
    looks = f"[...document.querySelectorAll('[data-chart={chart}] .mark-symbol path')]"
    looks += ".map((one) => one.getAttribute('d').replace(/[0-9.-]+/g, ''))"
    assert marks(chromium, chart, "symbol") >= 3 * chromium.evaluate(panels)
    assert len(set(chromium.evaluate(looks))) == 3
    assert chromium.evaluate(f"document.querySelectorAll('#{chart} .key path').length") == 2 * 3


@pytest.mark.parametrize(("width", "columns"), [(1440, 3), (1024, 2), (768, 2), (390, 1)])
def test_charts_side_by_side_have_room(
    chromium: Chromium, predicted: Path, width: int, columns: int
) -> None:
    chromium.open(predicted, width)
    lefts = "[...document.querySelectorAll('[data-chart=throughput] .panel')].map((one) => "
    lefts += "one.getBoundingClientRect().left)"
    assert len(set(chromium.evaluate(lefts))) == columns
    assert chromium.faults() == {"overlapping": [], "cut": [], "faint": []}


def test_a_page_of_cpus_ranks_nothing(chromium: Chromium, tmp_path: Path) -> None:
    made = write_results(tmp_path / "cpu", ("tp2", "pp2"), (1, 8), device="cpu")
    chromium.open(render_html(made))
    assert chromium.evaluate("document.querySelectorAll('#findings, #tradeoff').length") == 0
    assert "best" not in chromium.tab.locator("#main").inner_text().lower()
    heads = chromium.tab.locator("#comparison thead th").all_inner_texts()
    assert heads[:3] == ["layout", "workers", "tok/s"]
    assert "tok/s/GPU" not in heads
    assert chromium.complaints == []


def test_a_page_says_what_its_layouts_are(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    chromium.tab.get_by_text("What the layouts are").click()
    assert chromium.tab.locator("header .more dt").all_inner_texts() == ["tp", "pp", "dp"]


def test_a_chart_says_which_layouts_it_lacks(
    chromium: Chromium, page: Path, tmp_path: Path
) -> None:
    data = data_of(page)
    data["timeline"] = [one for one in data["timeline"] if one["layout"] != "tp4"]
    before, _, rest = page.read_text().partition(DATA)
    less = tmp_path / "less.html"
    less.write_text(before + DATA + json.dumps(data) + rest[rest.index("</script>") :])
    chromium.open(less)
    said = chromium.tab.locator("[data-note=timeline]").inner_text()
    assert "Without tp4: no calls were kept." in said


def test_a_chart_of_steps_says_why_it_has_none(
    chromium: Chromium, page: Path, tmp_path: Path
) -> None:
    data = data_of(page)
    for one in data["cells"]:
        one["parts"].pop("decode", None)
    before, _, rest = page.read_text().partition(DATA)
    less = tmp_path / "less.html"
    less.write_text(before + DATA + json.dumps(data) + rest[rest.index("</script>") :])
    chromium.open(less)
    said = chromium.tab.locator("[data-note=step]").inner_text()
    assert said == "Without tp4, pp4, tp2pp2: not taken apart; the reason is below the comparison."


def test_controls_work_from_the_keyboard(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    chromium.evaluate("document.querySelector('input[value=pp4]').focus()")
    chromium.tab.keyboard.press("Space")
    assert "pp4" not in chromium.evaluate("report.csv('throughput')")
    chromium.tab.keyboard.press("Tab")
    assert chromium.evaluate("document.activeElement.value") == "tp2pp2"
    chromium.evaluate("document.querySelector('select[name=concurrency]').focus()")
    chromium.tab.keyboard.press("ArrowUp")
    chromium.wait("report.state.concurrency === 8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_every_width_in_both_themes(
    chromium: Chromium, page: Path, odd: Path, width: int, dark: bool
) -> None:
    for one in (page, odd):
        chromium.open(one, width, dark)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        ink = chromium.evaluate("getComputedStyle(document.querySelector('.mark-text text')).fill")
        assert (min(map(int, re.findall(r"\d+", ink))) > 127) == dark
        assert chromium.complaints == []


def test_no_table_is_cut_off_on_a_desktop(chromium: Chromium, page: Path) -> None:
    cut = (
        "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > "
        "one.clientWidth).length"
    )
    chromium.open(page, width=1440)
    assert chromium.evaluate(cut) == 0


def test_rates_that_were_found_fit_a_phone_and_are_of_the_layouts_shown(
    chromium: Chromium, searched: Path, tmp_path: Path
) -> None:
    page = render_html(searched, tmp_path / "page.html")
    visible = "[...document.querySelectorAll('.rates tbody tr:not([hidden]) th')].map((one) => "
    visible += "one.textContent).join()"
    chromium.open(page, width=390)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
    assert chromium.evaluate(visible) == "tp2,pp2"
    chromium.evaluate("document.querySelector('input[value=tp2]').click()")
    assert chromium.evaluate(visible) == "pp2"
    assert chromium.evaluate("report.csv('rates', true)").count("\n") == 3
    assert chromium.complaints == []


def test_an_open_loop_is_called_by_its_rate(
    chromium: Chromium, searched: Path, tmp_path: Path
) -> None:
    chromium.open(render_html(searched / "tiny-1200", tmp_path / "page.html"))
    note = chromium.tab.locator("[data-note=throughput]").inner_text()
    assert note.startswith("At 1200 requests/s, at most 8 concurrent.")
    group = chromium.tab.locator("#comparison tr.group").first.inner_text()
    assert group == "1200 requests/s, at most 8 concurrent"


def test_the_page_prints(chromium: Chromium, page: Path, tmp_path: Path) -> None:
    chromium.open(page, dark=True)
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
    seen = "getComputedStyle(document.querySelector('{}')).{}"
    assert chromium.evaluate(seen.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    assert chromium.evaluate(seen.format(".contents", "display")) == "none"
    assert chromium.evaluate(seen.format("h2", "breakAfter")) == "avoid"
    assert chromium.complaints == []


def test_eight_layouts_at_ten_concurrencies_are_small_and_open_at_once(
    chromium: Chromium, tmp_path: Path
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
    assert time.monotonic() - start < 25
    assert rows(chromium, "throughput") == 8
    assert rows(chromium, "concurrency") == 80
    assert rows(chromium, "timeline") <= MAX_BARS
    assert chromium.complaints == []


def test_a_downloaded_table_has_what_stands_below_a_figure_in_a_column_of_its_own(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    row = next(one for one in table(chromium, "comparison") if one["layout"] == "tp4")
    assert (row["of bound, %"], row["bound, tok/s"]) == ("80", "12.6")
    assert (row["profiled / timed"], row["profiled / timed, prefill"]) == ("1", "1")
    assert row["memory, bytes"] == "50000000000"
    of_best = [float(one["of best, %"]) for one in table(chromium, "comparison") if one["tok/s"]]
    assert max(of_best) == 100.0  # the best is a number as well


def test_waits_are_shown_of_the_chosen_load_and_layouts_alone(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    seen = (
        "[...document.querySelectorAll('.waits tbody:not([hidden]) tr[data-layout]:not([hidden])')]"
        ".length"
    )
    assert chromium.evaluate(seen) == 3 * 2
    chromium.evaluate("document.querySelector('input[value=tp4]').click()")
    assert chromium.evaluate(seen) == 2 * 2
    for layout in ("pp4", "tp2pp2"):
        chromium.evaluate(f"document.querySelector('input[value={layout}]').click()")
    assert chromium.evaluate("document.querySelector('.waits').offsetParent === null")


def test_a_picture_of_a_chart_has_its_legend_and_no_variables(
    chromium: Chromium, page: Path
) -> None:
    chromium.open(page)
    for chart in CHARTS:
        picture = chromium.evaluate(f"report.svg('{chart}')")
        assert "var(--" not in picture, chart
        wrong = f"new DOMParser().parseFromString({json.dumps(picture)}, 'image/svg+xml')"
        assert chromium.evaluate(f"{wrong}.querySelector('parsererror')") is None, chart
    assert "streaming weights" in chromium.evaluate("report.svg('cost')")
