"""The comparison on the page: its columns, what is marked, and what is said below it."""

from __future__ import annotations

from collections.abc import Sequence

from summaries import one_run as run

from orchestrator.analysis.comparing.best import best
from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.comparing.findings import Findings
from orchestrator.analysis.comparing.spreads import statistics
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.analysis.summary import Summary
from orchestrator.report import sections, side_by_side
from orchestrator.report.shown_columns import known_columns

GPU = {"device_name": "A GPU", "device_ms_per_token": 1.25}
OBSERVED = {"step_ms": 10.0, "prefill_step_ms": 50.0}


def findings(runs: Sequence[Summary]) -> Findings:
    shown = rulings(runs)
    return Findings(compare(runs, shown), best(shown), [], [], [], statistics(runs), [], [])


def group(runs: Sequence[Summary]) -> side_by_side.Group:
    found = findings(runs)
    names = {one.cell: one.cell.strategy for one in found.comparison}
    (only,) = side_by_side.groups(found, runs, names)
    return only


def told(runs: Sequence[Summary], title: str) -> list[tuple[str, str]]:
    """What a column says of each layout, and what stands below that."""
    titles = [one.title for one in known_columns(findings(runs).comparison)]
    return [line.figures[titles.index(title)] for line in group(runs).rows]


def test_a_share_has_its_interval_below_it_from_two_starts_on():
    shares = {"tp4": (10.0, 12.0), "pp4": (5.0,)}
    runs = [
        run(name, 100.0 / len(name), start, comm_exposed_pct=share, **OBSERVED)
        for name, mine in shares.items()
        for start, share in enumerate(mine)
    ]
    # Student's t for one degree of freedom, 12.71, times the standard error of 1.
    assert sorted(told(runs, "comm, decode")) == [("11.0%", "\u00b112.7"), ("5.00%", "")]


def test_the_interval_of_a_figure_is_in_percent_of_it():
    runs = [run("tp4", x, i) for i, x in enumerate((99.0, 100.0, 101.0))]
    assert told(runs, "tok/s") == [("100", "\u00b12.48%")]


def test_what_a_token_costs_is_in_gpu_ms_on_gpus_and_in_worker_ms_on_a_cpu():
    for device, unit, other in (("A GPU", "GPU-ms", "worker-ms"), ("cpu", "worker-ms", "GPU-ms")):
        runs = [run("tp4", 100.0, **{**GPU, "device_name": device})]
        assert told(runs, f"{unit}/token") == [("1.25", "")]
        assert f"{other}/token" not in [one.title for one in known_columns(compare(runs))]


def test_every_cell_has_its_profile_ratios_its_power_cap_and_its_share_of_the_run():
    runs = [
        run(
            "tp4",
            100.0,
            profile_ratio=1.004,
            prefill_profile_ratio=1.57,
            power_capped_pct=35.0,
            run_comm_exposed_pct=8.29,
        )
    ]
    assert told(runs, "profiled / timed") == [("1.00", "1.57 prefill")]
    assert told(runs, "power cap") == [("35.0%", "")]
    assert told(runs, "comm, run") == [("8.29%", "")]


def test_every_layout_that_is_not_shown_to_be_worse_is_marked_best():
    equal = (100.0, 101.0, 99.0, 100.0)
    speeds = {"tp4": equal, "dp4": equal[::-1], "pp4": [x / 2 for x in equal]}
    runs = [run(name, x, i) for name, mine in speeds.items() for i, x in enumerate(mine)]
    marked = {line.layout: line.best for line in group(runs).rows}
    assert marked == {"tp4": True, "dp4": True, "pp4": False}


def test_with_one_start_each_nothing_is_marked_best_and_it_is_said_how_to_get_more():
    found = group([run("tp4", 100.0), run("pp4", 50.0)])
    assert not any(line.best for line in found.rows)
    assert (
        "Nothing is marked best: one start each: no interval (--num-starts 5 gives one)."
        in found.notes
    )


def test_shares_that_are_unknown_have_their_reason_below_the_table():
    slow = "the profiled pass takes 1.69 of the timed one"
    runs = [
        run(
            "tp4",
            100.0,
            **OBSERVED,
            compute_pct=90.0,
            prefill_step_reason=slow,
            prefill_cost_reason=slow,
            steps_unmatched=2,
        ),
        run("pp4", 50.0, 0, **OBSERVED, prefill_step_reason=slow),
        run("pp4", 50.0, 1, **OBSERVED, prefill_compute_pct=80.0, prefill_cost_reason="no steps"),
        run("dp4", 25.0),
        run("tp2dp2"),
    ]
    notes = group(runs).notes
    assert "No step of dp4 was observed, so it is not known where time goes." in notes
    assert (
        "Steps of tp4: 2 steps of decode left out (their calls do not agree over ranks or were not "
        f"seen); prefill is not taken apart ({slow})." in notes
    )
    assert (
        f"Steps of pp4: prefill of some starts is left out ({slow}); the cost of prefill is not "
        "taken apart (no steps)." in notes
    )
    assert not any("tp2dp2" in note for note in notes)


def test_waits_are_split_by_what_the_last_rank_was_doing():
    waiting = {
        "exposed_wait_pct": 5.0,
        "exposed_wait_pct_worst": 9.0,
        "wait_compute_pct": 3.0,
        "wait_launch_pct": 1.999,
        "wait_communication_pct": 0.001,
        "steps_unmatched": 0,
    }
    runs = [run("tp4", 100.0, **waiting), run("dp4", 50.0, exposed_wait_pct=0.0)]
    names = {one.cell: one.cell.strategy for one in runs}
    ((line,),) = [one.rows for one in sections.waits(compare(runs), names)]
    assert (line.layout, line.names) == ("tp4", ["decode"])
    assert line.figures == ["5.00", "3.00", "2.00", "<0.01", "9.00", "0"]


def test_repeats_lie_apart_between_starts_and_within_one():
    runs = [
        run("tp4", x, start, run=i) for start, i, x in ((0, 0, 98.0), (0, 1, 102.0), (1, 0, 100.0))
    ]
    runs += [run("tp4", 104.0, 1, run=1), run("pp4", 50.0)]
    names = {one.cell: one.cell.strategy for one in runs}
    (found,) = sections.spreads(statistics(runs), names)
    assert found.metrics == ["tokens/s"]
    (line,) = found.rows
    # Starts 100 and 102; runs inside each lie 4 apart.
    assert (line.layout, line.figures) == ("tp4", [("1.40%", "2.80%")])


def test_starts_of_several_nodes_are_said_to_be_pooled():
    runs = [run(name, x, i) for name in ("tp4", "pp4") for i, x in enumerate((99.0, 101.0))]
    compared = compare(runs)
    (one,) = sections.run_orders(compared, {"e": 1})
    (two,) = sections.run_orders(compared, {"e": 2})
    pooled = "Starts pool over 2 nodes; pairs stay within a node."
    assert two.sentence == f"{one.sentence} {pooled}"
