"""From the runs of every cell to the table that says which layout is best."""

import pytest
from summaries import one_run as run

from orchestrator.analysis.comparing.compare import COMPARED, Standing, compare, names_of, run_order
from orchestrator.analysis.comparing.verdicts import verdicts
from orchestrator.analysis.latency import Latency
from orchestrator.analysis.summary import MEASURED, SUMMARY
from workers.rows import columns


def compared(*runs):
    return compare(runs)


def standing(cells):
    return [(one.cell.strategy, one.relative_to_best) for one in cells]


def test_a_cell_tells_the_mean_of_its_runs_and_how_far_they_lie_apart():
    (cell,) = compared(run("tp4", 90.0), run("tp4", 113.0, 1), run("tp4", 100.0, 2))
    assert (cell.throughput.output_throughput, cell.spread.best) == (101.0, 113.0)
    assert cell.spread.std == pytest.approx(11.53, abs=0.01)
    assert cell.num_runs == 3


def test_the_best_layout_has_the_best_mean_as_in_the_verdicts_whatever_one_run_did():
    runs = [run("tp4", 100.0), run("tp4", 104.0, 1), run("pp4", 70.0), run("pp4", 130.0, 1)]
    assert standing(compared(*runs)) == [("tp4", 1.0), ("pp4", pytest.approx(100 / 102))]
    verdict = verdicts(runs)[0]
    assert (verdict.best, verdict.other) == ("tp4", "pp4")
    assert {one.metric for one in verdicts(runs)} == {"output_throughput"}


def test_rates_are_means_over_runs_so_that_those_of_a_row_go_together():
    (cell,) = compared(
        *(
            run(
                "tp4",
                speed,
                index,
                output_throughput_per_gpu=speed / 4,
                steady_output_throughput=speed,
                bound_pct=speed,
            )
            for index, speed in enumerate((10.0, 20.0, 60.0))
        )
    )
    assert cell.throughput.output_throughput == 30.0
    assert cell.throughput.output_throughput_per_gpu == 7.5
    assert cell.steady.steady_output_throughput == 30.0
    assert cell.bounds.bound_pct == 30.0


def test_one_run_has_no_spread():
    (cell,) = compared(run("tp4", 90.0))
    assert cell.spread.std is cell.spread.ci_low is None


def test_latencies_are_medians_over_runs():
    runs = (run("tp4", 90.0, i, mean_ttft_ms=ms) for i, ms in enumerate((1.0, 9.0, 2.0)))
    (cell,) = compared(*runs)
    assert cell.latency.ttft.mean == 2.0


def test_memory_is_that_of_the_fullest_run_and_what_is_the_same_for_all_that_of_the_first():
    (cell,) = compared(
        run("tp4", 1.0, peak_memory_bytes=5, comm_bytes=10),
        run("tp4", 1.0, 1, peak_memory_bytes=7, comm_bytes=11),
    )
    assert (cell.memory.peak_memory_bytes, cell.traffic.comm_bytes) == (7, 10)


def test_layouts_are_set_against_the_best_of_the_same_work_only():
    cells = compared(run("pp4", 50.0), run("tp4", 100.0), run("dp4", 300.0, max_concurrency=32))
    assert standing(cells) == [("tp4", 1.0), ("pp4", 0.5), ("dp4", 1.0)]


def test_a_cell_that_failed_stays_with_its_reason_after_the_others():
    cells = compared(run("dp4", reason="out_of_memory"), run("tp4", 10.0))
    assert [(one.cell.strategy, one.status, one.reason) for one in cells] == [
        ("tp4", "completed", None),
        ("dp4", "failed", "out_of_memory"),
    ]
    assert cells[1].relative_to_best is None


def test_a_cell_that_failed_still_says_what_is_known_without_a_result():
    (cell,) = compared(run("tp4", reason="timeout", request_rate=2.0, num_gpus=4))
    assert (cell.conditions.num_gpus, cell.arrivals.request_rate) == (4, 2.0)
    assert cell.throughput.duration is None


def test_what_an_invalid_run_measured_is_no_figure_of_its_cell():
    invalid = run(
        "tp4",
        900.0,
        status="invalid",
        peak_memory_bytes=7,
        mean_schedule_delay_ms=5.0,
        weight_bytes=3,
        bound_source="calibrated",
        bound_pct=150.0,
    )
    (cell,) = compared(invalid)
    assert (cell.memory.weight_bytes, cell.bounds.bound_source) == (3, "calibrated")
    assert cell.memory.peak_memory_bytes is cell.arrivals.mean_schedule_delay_ms is None
    assert cell.bounds.bound_pct is cell.throughput.output_throughput is None


def test_a_cell_with_one_good_run_is_completed_and_still_tells_of_the_bad_one():
    (cell,) = compared(run("tp4", 10.0), run("tp4", index=1, reason="timeout"))
    assert (cell.status, cell.num_runs) == ("completed", 1)
    assert (cell.reason, cell.reason_status) == ("timeout", "failed")


def test_what_was_observed_is_known_of_a_cell_once():
    seen = {"comm_exposed_pct": 35.0, "tp_all_reduce_busbw": 20.0}
    (cell,) = compared(*(run("tp4", 1.0, index, **seen) for index in range(2)))
    assert cell.step.decode.comm_exposed.pct == 35.0
    assert cell.operations.decode.tp_all_reduce.busbw == 20.0


def test_results_from_before_a_column_was_added_are_compared_all_the_same():
    older = SUMMARY.make([run("tp4", 90.0, output_digest="a")])
    (cell,) = compare(SUMMARY.rows(older.drop_columns(["output_digest", "steady_s", "goodput"])))
    assert cell.throughput.output_throughput == 90.0
    assert (cell.output_digest, cell.distinct_outputs) == (None, 0)


# -- what several runs say


def test_the_mean_has_students_interval():
    """100 ± 4.303 * 10 / sqrt(3)"""
    (cell,) = compared(*(run("tp4", rate, i) for i, rate in enumerate((90.0, 100.0, 110.0))))
    assert cell.spread.cv == pytest.approx(0.1)
    assert (cell.spread.ci_low, cell.spread.ci_high) == (
        pytest.approx(75.16, abs=0.01),
        pytest.approx(124.84, abs=0.01),
    )


def test_goodput_under_different_levels_is_no_one_figure():
    levels = [
        {"goodput": "ttft:1", "request_goodput": 1.0},
        {"goodput": "ttft:2", "request_goodput": 2.0},
    ]
    (cell,) = compared(*(run("tp4", 90.0, i, **one) for i, one in enumerate(levels)))
    assert (cell.goodput.goodput, cell.goodput.request_goodput) == (None, None)
    (cell,) = compared(*(run("tp4", 90.0, i, **levels[0]) for i in range(2)))
    assert (cell.goodput.goodput, cell.goodput.request_goodput) == ("ttft:1", 1.0)


def test_outputs_that_differ_from_run_to_run_have_no_digest():
    def outputs(*digests):
        runs = (run("tp4", 1.0, i, output_digest=one) for i, one in enumerate(digests))
        (cell,) = compared(*runs)
        return cell.output_digest, cell.distinct_outputs

    assert outputs("a", "a") == ("a", 1)
    assert outputs("a", "b") == (None, 2)
    assert outputs(None) == (None, 0)


def test_the_order_of_runs_is_said_where_layouts_have_several():
    def said(*turns, layouts=("tp4", "pp4")):
        runs = (
            run(name, 10.0, index, block=turn)
            for name in layouts
            for index, turn in enumerate(turns)
        )
        return run_order(compared(*runs))

    assert said(0, 0).startswith("The runs of a layout follow each other, without turns")
    assert said(0, 1).startswith("Layouts took turns, run by run")
    assert said(0) == said(0, 1, layouts=("tp4",)) == ""


def test_a_cell_is_called_by_what_tells_it_from_the_others():
    def named(*changes):
        cells = [run("tp4", dtype="bfloat16", **change).cell for change in changes]
        return names_of(cells)

    assert names_of([run("tp4").cell, run("pp4").cell]) == ["tp4", "pp4"]
    assert named({}, {"engine": "transformers"}) == ["tp4 torch", "tp4 transformers"]
    assert named({}, {"quantization": "fp8"}) == ["tp4 bfloat16", "tp4 bfloat16/fp8"]


# -- which columns it has


def test_its_columns_are_those_of_the_summary_that_say_how_runs_become_one_value():
    names = [one.name for one in COMPARED.columns]
    over_runs = [one.name for one in SUMMARY.columns if one.over_runs]
    assert [name for name in names if name in over_runs] == over_runs
    own = {one.name for one in columns(Standing)}
    assert set(names) == own | set(over_runs)


def test_a_column_that_a_group_declares_is_in_every_table_that_has_the_group():
    """Latency declares its columns once: nothing else has to name them."""
    declared = columns(Latency)
    every = [one.name for one in declared]
    compared = [one.name for one in declared if one.over_runs]
    for table, expected in ((MEASURED, every), (SUMMARY, every), (COMPARED, compared)):
        names = table.schema.names
        first = names.index(expected[0])
        assert names[first : first + len(expected)] == expected
