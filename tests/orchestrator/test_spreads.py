"""How far starts and the runs inside them lie apart, figure by figure, and what is said where that
is further than was asked for."""

import pytest
from click.testing import CliRunner
from summaries import summary, write_run

from orchestrator import cli
from orchestrator.analysis.comparing import findings
from orchestrator.analysis.comparing.spreads import statistics, unsettled
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.store import Store

CELL = {"model": "m", "strategy": "tp4", "max_concurrency": 32, "output_throughput": None}


def rows(*runs):
    """Runs that are given by what they measured, each in a start of its own."""
    return [summary(**{**CELL, "start": i, **run}) for i, run in enumerate(runs)]


def by_metric(*runs):
    return {one.metric: one for one in statistics(rows(*runs))}


def sentences(until_ci, *throughputs):
    runs = rows(*({"output_throughput": throughput} for throughput in throughputs))
    return [one.sentence for one in unsettled(runs, until_ci)]


def test_every_metric_that_was_measured_has_a_mean_and_an_interval():
    found = by_metric(
        *({"output_throughput": x, "median_ttft_ms": 2 * x} for x in (90.0, 100.0, 110.0))
    )
    assert set(found) == {"output_throughput", "median_ttft_ms"}
    row = found["median_ttft_ms"]
    assert (row.n, row.mean, row.std, row.cv_between, row.unit) == (
        3,
        200.0,
        20.0,
        pytest.approx(0.1),
        "ms",
    )
    assert row.cv_within is None
    assert (row.ci_low, row.ci_high) == (
        pytest.approx(150.32, abs=0.01),
        pytest.approx(249.68, abs=0.01),
    )


def test_one_start_has_a_mean_alone_and_what_its_runs_scatter_by():
    row = by_metric({"median_tpot_ms": 5.0})["median_tpot_ms"]
    assert (row.n, row.mean, row.std, row.ci_low, row.cv_within) == (1, 5.0, None, None, None)
    runs = [summary(**{**CELL, "run": i, "median_tpot_ms": ms}) for i, ms in enumerate((4.0, 6.0))]
    (row,) = statistics(runs)
    assert (row.n, row.mean, row.ci_low) == (1, 5.0, None)
    assert row.cv_within == pytest.approx(2**0.5 / 5)


def test_what_lies_within_starts_and_between_them_is_told_apart():
    """Runs of a start lie 2 apart, the starts 20: the interval is of the starts."""
    values = {0: (99.0, 101.0), 1: (119.0, 121.0)}
    runs = [
        summary(**{**CELL, "start": at, "run": i, "output_throughput": x})
        for at, mine in values.items()
        for i, x in enumerate(mine)
    ]
    (row,) = statistics(runs)
    assert (row.n, row.mean, row.std) == (2, 110.0, pytest.approx(200**0.5))
    assert row.cv_within == pytest.approx(2**0.5 / 110)
    assert row.ci_high - row.mean == pytest.approx(12.706 * 10, abs=0.01)


def test_shares_of_a_step_have_intervals_over_starts_and_may_be_0():
    found = by_metric(*({"comm_exposed_pct": x, "bubble_pct": 0.0} for x in (9.0, 10.0, 11.0)))
    row = found["comm_exposed_pct"]
    assert (row.n, row.mean, row.unit) == (3, 10.0, "%")
    assert row.ci_high - row.ci_low == pytest.approx(2 * 4.303 / 3**0.5, abs=0.01)
    assert (found["bubble_pct"].mean, found["bubble_pct"].cv_between) == (0.0, None)


def test_what_is_observed_once_a_start_does_not_scatter_within_it():
    """Also where a later command made the second run of the start."""
    shares = [{"start": start, "comm_exposed_pct": 9.0 + start} for start in (0, 0, 1)]
    runs = rows(*({**one, "run": i, "block": i} for i, one in enumerate(shares)))
    (row,) = statistics(runs)
    assert (row.n, row.mean, row.cv_within) == (2, 9.5, None)


def test_only_runs_that_count_are_in_it():
    measured = ((1.0, True), (3.0, True), (9.0, False), (9.0, None))
    energy = by_metric(
        *({"joules_per_output_token": joules, "power_valid": valid} for joules, valid in measured)
    )
    joules = energy["joules_per_output_token"]
    assert (joules.n, joules.mean) == (2, 2.0)
    goodput = [{"goodput": levels, "request_goodput": 1.0} for levels in ("ttft:1", "ttft:2")]
    assert "request_goodput" not in by_metric(*goodput)
    failed = {"status": "failed", "output_throughput": 1.0}
    assert by_metric({"output_throughput": 5.0}, failed)["output_throughput"].n == 1
    ablated = {"output_throughput": 1.0, "ablation": "comm"}
    assert by_metric({"output_throughput": 5.0}, ablated)["output_throughput"].n == 1


def test_a_cell_that_is_less_certain_than_was_asked_says_how_far_it_came():
    assert sentences(0.05, 100.0, 110.0, 105.0) == [
        "tp4 short at 32: still ±11.8% after 3 starts (asked ±5%)"
    ]
    assert sentences(0.05, 100.0) == ["tp4 short at 32: no interval after 1 start (asked ±5%)"]
    assert sentences(0.15, 100.0, 110.0, 105.0) == [
        "tp4 short at 32: ±11.8%, not confirmed by 6 more, after 3 starts (asked ±15%)"
    ]
    assert sentences(0.15, *[100.0, 101.0] * 4) == []
    assert sentences(None, 100.0, 110.0, 105.0) == []


def test_starts_count_in_the_order_they_were_made_and_not_in_that_of_their_files():
    """With start 10 between 1 and 2, six others would follow the first narrow interval."""
    made = (99.7, 101.1, 99.8, 100.4, 98.8, 99.8, 99.0, 102.1, 99.2, 100.5, 101.2)
    runs = rows(*({"output_throughput": value} for value in made))
    by_name = sorted(runs, key=lambda run: f"s{run.start}.r0")
    assert [run.start for run in by_name][:4] == [0, 1, 10, 2]
    (one,) = unsettled(by_name, 0.01)
    assert "not confirmed by 6 more" in one.sentence


def test_runs_of_one_start_settle_nothing():
    runs = [
        summary(**{**CELL, "run": i, "output_throughput": x}) for i, x in enumerate([100.0] * 9)
    ]
    assert [one.n for one in unsettled(runs, 0.05)] == [1]


def test_it_is_said_below_the_comparison_for_what_was_asked_when_the_runs_were_made(tmp_path):
    store = Store(tmp_path / "m-1")
    store.create()
    store.update_manifest(experiment={"until_ci": 0.05})
    cell = Cell(Deployment("m", "tp4", "torch", "bfloat16"), Scenario("short", 256, 128), 32)
    for index, throughput in enumerate((100.0, 110.0, 105.0)):
        write_run(store, Run(cell, index, 0), output_throughput=throughput)
    said = "tp4 short at 32: still ±11.8% after 3 starts (asked ±5%)"
    assert said in CliRunner().invoke(cli.main, ["compare", str(store.folder)]).stdout
    assert findings.of_folders([store.folder]).as_data()["unsettled"][0]["sentence"] == said
    assert (
        "not confirmed" in findings.of_folders([store.folder], until_ci=0.2).unsettled[0].sentence
    )
