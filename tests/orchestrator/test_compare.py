"""From the runs of every cell to the table that says which layout is best."""

import io

import pyarrow as pa
import pytest
from report_inputs import write_results
from rich.console import Console

from orchestrator.analysis import findings
from orchestrator.analysis.compare import COMPARISON, compare, names_of
from orchestrator.analysis.metrics import SUMMARY
from orchestrator.analysis.verdicts import verdicts
from orchestrator.report import terminal
from orchestrator.store import results


def run(strategy, throughput=None, index=0, **fields):
    done = throughput is not None
    return {
        "experiment": "e",
        "model": "tiny",
        "strategy": strategy,
        "engine": "torch",
        "dtype": "float32",
        "quantization": "none",
        "scenario": "short",
        "max_concurrency": 8,
        "run": index,
        "num_gpus": 4,
        "device_name": "cpu",
        "input_len": 256,
        "output_len": 128,
        "status": "completed" if done else "failed",
        "output_throughput": throughput,
        **fields,
    }


def comparison(*runs):
    return compare(pa.Table.from_pylist(list(runs), schema=SUMMARY))


def shown(table, width=110):
    console = Console(file=io.StringIO(), width=width)
    terminal.render(table, console)
    return console.file.getvalue()


def headers(text):
    """The columns of each table in `text`."""
    return [line.split("layout", 1)[1] for line in text.splitlines() if line.startswith(" layout")]


def test_a_cell_tells_the_mean_of_its_runs_and_how_far_they_lie_apart():
    rows = comparison(run("tp4", 90.0), run("tp4", 113.0, 1), run("tp4", 100.0, 2)).to_pylist()
    assert len(rows) == 1
    assert (rows[0]["output_throughput"], rows[0]["output_throughput_best"]) == (101.0, 113.0)
    assert rows[0]["output_throughput_std"] == pytest.approx(11.53, abs=0.01)
    assert rows[0]["num_runs"] == 3


def test_the_best_layout_has_the_best_mean_as_in_the_verdicts_whatever_one_run_did():
    runs = [run("tp4", 100.0), run("tp4", 104.0, 1), run("pp4", 70.0), run("pp4", 130.0, 1)]
    rows = comparison(*runs).to_pylist()
    assert [(r["strategy"], r["relative_to_best"]) for r in rows] == [
        ("tp4", 1.0),
        ("pp4", pytest.approx(100 / 102)),
    ]
    (verdict,) = verdicts(pa.Table.from_pylist(runs, schema=SUMMARY)).to_pylist()
    assert (verdict["best"], verdict["other"]) == ("tp4", "pp4")


def test_rates_are_means_over_runs_so_that_those_of_a_row_go_together():
    speeds = (10.0, 20.0, 60.0)
    each = [
        {"output_throughput_per_gpu": s / 4, "steady_output_throughput": s, "bound_pct": s}
        for s in speeds
    ]
    row = comparison(*(run("tp4", s, i, **each[i]) for i, s in enumerate(speeds))).to_pylist()[0]
    names = (
        "output_throughput",
        "output_throughput_per_gpu",
        "steady_output_throughput",
        "bound_pct",
    )
    assert [row[name] for name in names] == [30.0, 7.5, 30.0, 30.0]


def test_one_run_has_no_spread():
    assert comparison(run("tp4", 90.0)).to_pylist()[0]["output_throughput_std"] is None


def test_latencies_are_medians_over_runs():
    rows = comparison(
        *(run("tp4", 90.0, i, mean_ttft_ms=ms) for i, ms in enumerate((1.0, 9.0, 2.0)))
    ).to_pylist()
    assert rows[0]["mean_ttft_ms"] == 2.0


def test_layouts_are_set_against_the_best_of_the_same_work_only():
    rows = comparison(
        run("pp4", 50.0), run("tp4", 100.0), run("dp4", 300.0, max_concurrency=32)
    ).to_pylist()
    assert [(r["strategy"], r["relative_to_best"]) for r in rows] == [
        ("tp4", 1.0),
        ("pp4", 0.5),
        ("dp4", 1.0),
    ]


def test_a_cell_that_failed_stays_with_its_reason_after_the_others():
    rows = comparison(run("dp4", reason="out_of_memory"), run("tp4", 10.0)).to_pylist()
    assert [(r["strategy"], r["status"], r["reason"]) for r in rows] == [
        ("tp4", "completed", None),
        ("dp4", "failed", "out_of_memory"),
    ]
    assert rows[1]["relative_to_best"] is None


def test_a_cell_with_one_good_run_is_completed_and_still_tells_of_the_bad_one():
    row = comparison(run("tp4", 10.0), run("tp4", index=1, reason="timeout")).to_pylist()[0]
    assert (row["status"], row["num_runs"], row["reason"], row["reason_status"]) == (
        "completed",
        1,
        "timeout",
        "failed",
    )


def test_a_run_that_is_invalid_is_not_said_to_have_failed():
    invalid = run("tp4", 900.0, 1) | {"status": "invalid", "reason": "900 tok/s is above the bound"}
    mixed, alone = comparison(run("tp4", 10.0), invalid), comparison(invalid)
    assert [table.to_pylist()[0]["reason_status"] for table in (mixed, alone)] == [
        "invalid",
        "invalid",
    ]
    assert "tp4 (torch), one of its runs is invalid: 900 tok/s is above the bound" in shown(mixed)
    assert "tp4 (torch) is invalid: 900 tok/s is above the bound" in shown(alone)
    failed = shown(comparison(run("tp4", 10.0), run("tp4", index=1, reason="timeout")))
    assert "tp4 (torch), one of its runs failed: timeout" in failed


def test_every_numeric_field_has_a_unit():
    for field in COMPARISON:
        assert str(field.type) == "string" or b"unit" in (field.metadata or {}), field.name


def test_the_table_is_plain_text_that_fits_and_tells_failures_and_that_cpu_is_no_ranking():
    wide = {
        "engine": "transformers",
        "peak_memory_bytes": 123_400_000_000,
        "median_ttft_ms": 12345.6,
        "median_tpot_ms": 123.45,
    }
    runs = [run("tp2pp2", 1e5, **wide), run("pp4", 5e4), run("dp4", reason="out_of_memory: rank 3")]
    text = shown(comparison(*runs))
    assert "…" not in text + shown(comparison(*runs, run("tp4", 1.0, dtype="bfloat16")), width=120)
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in shown(
        comparison(run("tp2pp2", 100.0, median_ttft_ms=123.4, peak_memory_bytes=10**9)), width=80
    )
    assert "\x1b" not in text
    assert "short (256 in / 128 out) · 8 concurrent" in text
    assert "50%" in text
    assert "123.4 GB" in text
    assert "dp4 (torch) failed: out_of_memory: rank 3" in text
    assert "no ranking" in " ".join(text.split())


LARGE = {
    "device_name": "NVIDIA H200",
    "output_throughput_std": 123.4,
    "steady_output_throughput": 12345.6,
    "bound_pct": 81.4,
    "median_ttft_ms": 12345.6,
    "median_tpot_ms": 123.45,
    "comm_exposed_pct": 12.3,
    "bubble_pct": 50.0,
    "power_valid": True,
    "joules_per_output_token": 26.361,
    "peak_memory_bytes": 123_400_000_000,
    "output_throughput_per_gpu": 6172.8,
}
OPEN = {
    "request_rate": 20.0,
    "goodput": "ttft:500",
    "request_goodput": 18.84,
    "median_schedule_delay_ms": 1234.5,
}


@pytest.mark.parametrize("width", [80, 110, 160])
@pytest.mark.parametrize("fields", [{}, OPEN, {"engine": "transformers"}, {"dtype": "bfloat16"}])
def test_a_table_leaves_columns_out_until_nothing_of_it_is_cut_or_wrapped(width, fields):
    layouts = [run("tp2pp2", 1e4, **LARGE), run("dp2zero3", 1e3, **LARGE)]
    text = shown(
        comparison(layouts[0] | (fields if fields is OPEN else {}), layouts[1] | fields), width
    )
    table = [line for line in text.splitlines() if line.startswith(" ") and line.strip()]
    assert "…" not in text
    assert len(table) == 4  # the header, the rule and two rows
    assert max(map(len, table)) <= width
    for name in (
        "tok/s",
        "best",
        "TTFT ms",
        "TPOT ms",
        "comm",
        *(["goodput"] if fields is OPEN else []),
    ):
        assert name in headers(text)[0]


def test_a_column_is_explained_where_it_is_shown():
    rows = comparison(run("tp4", 100.0, **LARGE))
    wide, narrow = shown(rows, 160), shown(rows, 80)
    for words in ("J/tok", "26.36", "energy of the GPUs per generated token"):
        assert words in " ".join(wide.split())
    assert "J/tok" not in narrow
    assert "energy" not in narrow
    for text in (wide, narrow):
        assert "81%" in text
        assert (
            "of bound: tok/s in percent of what the GPUs' memory and arithmetic would allow"
            in " ".join(text.split())
        )


def test_figures_that_nobody_has_take_no_column():
    text = shown(comparison(run("tp4", 100.0)), 160)
    for name in ("of bound", "goodput", "J/tok"):
        assert name not in text
    some = shown(comparison(run("tp4", 100.0, **LARGE), run("pp4", 90.0)), 160)
    pp4 = next(line for line in some.splitlines() if line.startswith(" pp4")).split()
    assert (
        pp4[
            headers(some)[0].replace("of bound", "bound").replace(" ms", "").split().index("bound")
            + 1
        ]
        == "-"
    )


def test_goodput_is_shown_where_it_was_asked_for():
    text = shown(comparison(run("tp4", 10.0, **OPEN), run("tp4", 10.0, max_concurrency=9)))
    asked, not_asked = headers(text)
    assert "goodput" in asked
    assert "goodput" not in not_asked
    assert "18.8" in text
    assert "requests per second that met every service level" in " ".join(text.split())


def test_tables_of_one_experiment_have_the_same_columns():
    text = shown(
        comparison(
            run("tp4", 1e4, **LARGE),
            run("tp4", 1.0, device_name="H200", bound_pct=1.0, max_concurrency=1),
        ),
        80,
    )
    one, two = headers(text)
    assert one.split() == two.split()
    assert "memory" in one


def test_engine_and_dtype_stand_in_the_title_unless_they_differ():
    text = shown(comparison(run("tp4", 10.0), run("pp4", 9.0)))
    assert "8 concurrent · torch · float32" in text
    text = shown(comparison(run("tp4", 10.0), run("tp4", 9.0, engine="deepspeed")))
    assert "8 concurrent · float32" in text
    assert headers(text)[0].split()[0] == "engine"


def test_the_cpu_note_is_for_cpus():
    assert "gloo" not in shown(comparison(run("tp4", 100.0, device_name="NVIDIA H200")))


def test_the_comparison_as_a_picture(tmp_path):
    terminal.export_svg(
        lambda console: terminal.render(comparison(run("tp4", 100.0)), console),
        tmp_path / "picture.svg",
    )
    assert "tp4" in (tmp_path / "picture.svg").read_text()


def test_outside_a_terminal_progress_is_a_line_per_finished_run():
    console = Console(file=io.StringIO(), width=100)
    with terminal.RunProgress(console) as progress:
        progress.begin(2, 1)
        progress.phase("tiny.tp4", "tiny.tp4.short.c8", "run 1/2")
        progress.finished({**run("tp4", 10.0), "median_ttft_ms": 5.0, "median_tpot_ms": 1.0})
        progress.finished({**run("tp4", reason="timeout"), "run": 1})
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "1 of 3 runs have a result and are skipped.",
        "[1/2] tp4 torch short c8 run 1: 10.0 tok/s, TTFT 5.0 ms, TPOT 1.00 ms",
        "[2/2] tp4 torch short c8 run 2: failed: timeout",
    ]


def test_requests_are_read_only_to_hold_them_against_other_levels(tmp_path, monkeypatch):
    folder = write_results(
        tmp_path / "tiny-1", layouts=("tp4", "pp4"), concurrencies=(1,), served=3, samples=2
    )
    opened = set()

    def read_part(path):
        opened.add(path.parent.name)
        return original(path)

    original = results.read_part
    monkeypatch.setattr(results, "read_part", read_part)
    findings.of_folders([folder])
    assert opened == {"summary"}
    findings.of_folders([folder], {"ttft": 100.0})
    assert opened == {"summary", "requests"}


# -- what several runs say


def test_the_mean_has_students_interval():
    row = comparison(
        *(run("tp4", tokens, i) for i, tokens in enumerate((90.0, 100.0, 110.0)))
    ).to_pylist()[0]
    assert row["output_throughput_cv"] == pytest.approx(0.1)
    low, high = row["output_throughput_ci_low"], row["output_throughput_ci_high"]
    assert (low, high) == (
        pytest.approx(75.16, abs=0.01),
        pytest.approx(124.84, abs=0.01),
    )  # 100 ± 4.303 * 10 / sqrt(3)
    assert comparison(run("tp4", 90.0)).to_pylist()[0]["output_throughput_ci_low"] is None


def test_the_table_shows_half_the_interval_in_percent_where_there_are_two_runs():
    text = shown(
        comparison(
            *(run("tp4", tokens, i) for i, tokens in enumerate((90.0, 100.0, 110.0))),
            run("pp4", 50.0),
        )
    )
    rows = [line.split() for line in text.splitlines() if line.startswith((" tp4", " pp4"))]
    assert [row[2:4] for row in rows] == [["100.0", "24.8%"], ["50.0", "-"]]
    assert "half of that mean's 95% interval" in " ".join(text.split())
    assert "±" not in shown(comparison(run("tp4", 100.0)))


def test_goodput_under_different_levels_is_no_one_figure():
    levels = [
        {"goodput": "ttft:1", "request_goodput": 1.0},
        {"goodput": "ttft:2", "request_goodput": 2.0},
    ]
    row = comparison(
        *(run("tp4", 90.0, i, **fields) for i, fields in enumerate(levels))
    ).to_pylist()[0]
    assert (row["goodput"], row["request_goodput"]) == (None, None)
    row = comparison(*(run("tp4", 90.0, i, **levels[0]) for i in range(2))).to_pylist()[0]
    assert (row["goodput"], row["request_goodput"]) == ("ttft:1", 1.0)


def test_results_of_an_older_release_lack_columns_and_are_compared_all_the_same():
    older = pa.Table.from_pylist([run("tp4", 90.0)], schema=SUMMARY).drop_columns(
        ["output_digest", "steady_s", "goodput"]
    )
    row = compare(older).to_pylist()[0]
    assert (row["output_throughput"], row["output_digest"], row["distinct_outputs"]) == (
        90.0,
        None,
        0,
    )


def test_each_group_says_which_layouts_made_the_same_tokens():
    done = [
        run(name, 10.0, output_digest="a" * 16, max_concurrency=c)
        for name in ("tp4", "dp4")
        for c in (1, 2)
    ]
    assert shown(comparison(*done)).count("Output tokens: the same under dp4, tp4.") == 2
    assert "Output tokens" not in shown(comparison(done[0]))


def test_repeats_come_with_a_note_on_their_order():
    def noted(*turns, **fields):
        rows = [
            run(name, 10.0 + index, index, turn=turn, **fields)
            for name in ("tp4", "pp4")
            for index, turn in enumerate(turns)
        ]
        return " ".join(shown(comparison(*rows)).split())

    assert "The runs of a layout follow each other: not interleaved" in noted(None, None)
    assert "The runs of a layout follow each other: not interleaved" in noted(0, 0)
    assert "Layouts took turns, run by run" in noted(0, 1)
    assert "follow each other" not in noted(0)
    assert "follow each other" not in shown(comparison(run("tp4", 10.0), run("tp4", 11.0, 1)))


def test_a_cell_is_called_by_what_tells_it_from_the_others():
    plain = {"strategy": "tp4", "engine": "torch", "dtype": "bfloat16", "quantization": "none"}
    assert names_of([plain, {**plain, "strategy": "pp4"}]) == ["tp4", "pp4"]
    assert names_of([plain, {**plain, "engine": "transformers"}]) == [
        "tp4 torch",
        "tp4 transformers",
    ]
    assert names_of([plain, {**plain, "quantization": "fp8"}]) == [
        "tp4 bfloat16",
        "tp4 bfloat16/fp8",
    ]


def test_an_open_loop_is_named_and_shows_its_delay_where_a_closed_one_shows_its_steady_state():
    text = shown(
        comparison(
            run(
                "tp4",
                10.0,
                request_rate=2.5,
                mean_schedule_delay_ms=99.9,
                median_schedule_delay_ms=12.3,
            )
        )
    )
    assert "2.5 requests/s, at most 8 concurrent" in text
    assert "12.3" in text
    assert "delay ms" in text
    assert "delay ms" not in shown(comparison(run("tp4", 10.0, steady_output_throughput=11.0)))
