"""From the runs of every cell to the table that says which layout is best."""

import pytest
from summaries import one_run as run

from orchestrator.analysis.comparing.compare import COMPARED, Standing, compare, run_order
from orchestrator.analysis.comparing.rounds import names_of
from orchestrator.analysis.comparing.verdicts import verdicts
from orchestrator.analysis.latency import Latency
from orchestrator.analysis.summary import MEASURED, SUMMARY
from workers.rows import columns


def compared(*runs):
    return compare(runs)


def standing(cells):
    return [(one.cell.strategy, one.relative_to_best) for one in cells]


def test_a_cell_tells_the_mean_of_its_starts_and_how_far_they_lie_apart():
    (cell,) = compared(run("tp4", 90.0), run("tp4", 113.0, 1), run("tp4", 100.0, 2))
    assert (cell.throughput.output_throughput, cell.spread.best) == (101.0, 113.0)
    assert cell.spread.std == pytest.approx(11.53, abs=0.01)
    assert (cell.num_starts, cell.num_runs) == (3, 3)


def test_runs_are_averaged_inside_their_start_so_that_each_start_counts_once():
    runs = [run("tp4", 90.0), run("tp4", 110.0, 1), *(run("tp4", 112.0, 1, run=i) for i in (1, 2))]
    (cell,) = compared(*runs)
    assert cell.throughput.output_throughput == pytest.approx((90.0 + 334 / 3) / 2)
    assert (cell.num_starts, cell.num_runs) == (2, 4)


def test_what_is_inside_a_start_and_what_is_between_starts_is_told_apart():
    """Runs of a start agree to 1, starts lie 20 apart."""
    values = {0: (99.0, 101.0), 1: (119.0, 121.0)}
    runs = [run("tp4", x, at, run=i) for at, mine in values.items() for i, x in enumerate(mine)]
    (cell,) = compared(*runs)
    assert cell.spread.cv_within == pytest.approx(2**0.5 / 110)
    assert cell.spread.cv_between == pytest.approx(200**0.5 / 110)
    (single,) = compared(run("tp4", 90.0), run("tp4", 110.0, 1))
    assert single.spread.cv_within is None


def test_starts_of_two_commands_are_two_starts():
    (cell,) = compared(run("tp4", 90.0, block=0), run("tp4", 110.0, block=1))
    assert (cell.num_starts, cell.throughput.output_throughput) == (2, 100.0)


def test_the_best_layout_has_the_best_mean_as_in_the_verdicts_whatever_one_run_did():
    runs = [run("tp4", 100.0), run("tp4", 104.0, 1), run("pp4", 70.0), run("pp4", 130.0, 1)]
    assert standing(compared(*runs)) == [("tp4", 1.0), ("pp4", pytest.approx(100 / 102))]
    verdict = verdicts(runs)[0]
    assert (verdict.better, verdict.other) == ("tp4", "pp4")
    assert {one.metric for one in verdicts(runs)} == {"output_throughput"}


def test_rank_ratio_and_interval_are_of_one_estimator():
    """By geometric means pp2 would deliver 0.97x of tp1; by arithmetic ones it is ahead."""
    runs = [run("tp1", x, i) for i, x in enumerate((100.0, 100.0, 100.0))]
    runs += [run("pp2", x, i) for i, x in enumerate((65.0, 90.0, 155.0))]
    first, second = compared(*runs)
    (verdict,) = verdicts(runs)
    assert (first.cell.strategy, verdict.better) == ("pp2", "pp2")
    assert verdict.ratio == pytest.approx(1 / second.relative_to_best)
    assert verdict.ratio == pytest.approx(310 / 300)


def test_layouts_are_ranked_by_the_rounds_that_both_have():
    """pp4 missed the slow round, so its own mean is higher; side by side it is behind."""
    tp4 = [run("tp4", x, i) for i, x in enumerate((100.0, 100.0, 50.0))]
    pp4 = [run("pp4", x, i) for i, x in enumerate((90.0, 90.0))]
    first, second = compared(*tp4, *pp4)
    assert (first.cell.strategy, second.relative_to_best) == ("tp4", pytest.approx(0.9))
    assert second.throughput.output_throughput > first.throughput.output_throughput


def test_the_comparison_is_in_the_order_of_what_is_asked_for():
    tp4, pp4 = run("tp4", 100.0, median_tpot_ms=9.0), run("pp4", 50.0, median_tpot_ms=3.0)
    unknown = run("dp4", 70.0)
    order = [one.cell.strategy for one in compare([tp4, pp4, unknown], objective="latency")]
    assert order == ["pp4", "tp4", "dp4"]
    assert standing(compared(tp4, pp4, unknown))[0] == ("tp4", 1.0)


def test_rates_are_means_over_starts_so_that_those_of_a_row_go_together():
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


def test_one_start_has_no_spread_however_many_runs_are_in_it():
    (cell,) = compared(run("tp4", 90.0), run("tp4", 92.0, run=1))
    assert cell.spread.std is cell.spread.ci_low is cell.spread.cv_between is None
    assert cell.spread.cv_within == pytest.approx(2**0.5 / 91)


def test_latencies_are_means_over_starts_of_what_runs_say():
    runs = [run("tp4", 90.0, i, p99_ttft_ms=ms) for i, ms in enumerate((1.0, 9.0, 2.0))]
    runs.append(run("tp4", 90.0, 1, run=1, p99_ttft_ms=3.0))
    (cell,) = compared(*runs)
    assert cell.latency.ttft.p99 == 3.0


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
    assert cells[1].relative_to_best is cells[1].in_best_set is None


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
    (cell,) = compared(run("tp4", 10.0), run("tp4", start=1, reason="timeout"))
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
    assert cell.spread.cv_between == pytest.approx(0.1)
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


def test_it_is_said_what_repeats_are_worth_where_layouts_have_several():
    def said(starts, runs=1, layouts=("tp4", "pp4")):
        return run_order(
            compared(
                *(
                    run(name, 10.0, start, run=index)
                    for name in layouts
                    for start in range(starts)
                    for index in range(runs)
                )
            )
        )

    assert "give no interval; --num-starts 5 does" in said(1, runs=2)
    assert said(2).startswith("Layouts took turns, start by start")
    assert "Intervals are at 95% each" in said(2)
    assert said(1) == said(2, layouts=("tp4",)) == ""


# -- the best


def best_set(cells):
    return {one.cell.strategy: one.in_best_set for one in cells}


def test_the_best_are_all_that_are_not_shown_to_be_worse():
    values = {"tp4": (100.0, 101.0, 99.0), "dp4": (99.0, 101.0, 98.0), "pp4": (50.0, 51.0, 49.0)}
    runs = [run(name, x, i) for name, mine in values.items() for i, x in enumerate(mine)]
    assert best_set(compared(*runs)) == {"tp4": True, "dp4": True, "pp4": False}


def test_with_one_start_each_nobody_is_shown_to_be_best():
    assert best_set(compared(run("tp4", 100.0), run("pp4", 50.0))) == {"tp4": None, "pp4": None}
    assert best_set(compared(run("tp4", 100.0), run("tp4", 100.0, 1))) == {"tp4": None}


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
