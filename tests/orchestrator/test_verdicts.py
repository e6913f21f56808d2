"""Which layout is best for what, and whether the runs show it."""

import pytest
from summaries import summary

from orchestrator.analysis.comparing.verdicts import METRICS, OBJECTIVES, verdicts
from orchestrator.analysis.summary import SUMMARY


def runs(strategy, throughputs, **fields):
    """A run of a layout for each throughput. fields: the same for all of them, or a list of one for
    each."""
    base = {"strategy": strategy, "max_concurrency": 32, "num_gpus": 4}
    each = [
        {name: value[i] if isinstance(value, list) else value for name, value in fields.items()}
        for i in range(len(throughputs))
    ]
    return [
        summary(**{**base, "run": i, "output_throughput": tokens, **each[i]})
        for i, tokens in enumerate(throughputs)
    ]


def found(*cells, objective="throughput"):
    rows = [row for cell in cells for row in cell]
    return [one for one in verdicts(rows) if one.objective == objective]


def sentences(*cells, **how):
    return [one.sentence for one in found(*cells, **how)]


def test_a_difference_is_stated_with_its_interval():
    (row,) = found(runs("tp4", [230.0, 231.0, 232.0]), runs("pp4", [100.0, 99.5, 100.5]))
    assert (row.best, row.other, row.different) == ("tp4", "pp4", True)
    assert row.ratio == pytest.approx(2.31, abs=1e-4)
    assert row.ci_low < 2.31 < row.ci_high
    assert (
        row.sentence
        == f"tp4 delivers 2.31x pp4 [{row.ci_low:.2f}, {row.ci_high:.2f}] at 32 concurrent"
    )


def test_an_interval_around_one_shows_no_difference():
    (row,) = found(runs("tp2", [100.0, 104.0]), runs("dp2", [101.0, 99.0]))
    assert row.different is False
    assert row.sentence.startswith(
        "no difference shown between tp2 and dp2 at 32 concurrent (1.02x ["
    )


def test_layouts_that_took_turns_are_compared_in_pairs_so_a_drift_cancels():
    drifting = (
        runs("tp4", [200.0, 180.0, 160.0], block=[0, 1, 2]),
        runs("pp4", [80.2, 89.8, 100.0], block=[2, 1, 0]),
    )
    (row,) = found(*drifting)
    assert (row.different, row.ratio) == (True, pytest.approx(2.0, abs=0.01))
    assert row.ci_high - row.ci_low < 0.03
    (apart,) = found(
        runs("tp4", [200.0, 180.0, 160.0], block=0), runs("pp4", [80.2, 89.8, 100.0], block=0)
    )
    assert apart.ci_high - apart.ci_low > 0.5


def test_pairs_are_of_the_turns_that_both_have():
    (row,) = found(
        runs("tp4", [200.0, 180.0, 160.0], block=[0, 1, 2]),
        runs("pp4", [100.0, 90.0, 80.0, 70.0], block=[0, 1, 2, 3]),
    )
    assert (row.ratio, row.ci_low, row.ci_high) == (pytest.approx(2.0),) * 3


def test_single_runs_have_no_interval_and_that_is_said():
    (row,) = found(runs("tp4", [200.0]), runs("pp4", [100.0]))
    assert (row.ratio, row.ci_low, row.different) == (pytest.approx(2.0), None, None)
    assert row.sentence == "tp4 delivers 2.00x pp4 at 32 concurrent (one run each: no interval)"
    assert sentences(runs("tp4", [200.0, 200.0]), runs("pp4", [100.0]))[0].endswith(
        "(one run of pp4: no interval)"
    )


def test_the_best_is_set_against_each_other_the_next_best_first():
    rows = found(runs("pp4", [50.0]), runs("tp4", [100.0]), runs("dp4", [80.0]))
    assert [(row.best, row.other) for row in rows] == [("tp4", "dp4"), ("tp4", "pp4")]


def test_groups_are_apart_and_failed_runs_are_none():
    failed = runs("dp4", [None], status="failed")
    rows = found(
        runs("tp4", [10.0]), runs("pp4", [20.0]), failed, runs("tp4", [9.0], max_concurrency=1)
    )
    assert [(row.best, row.other, row.max_concurrency) for row in rows] == [("pp4", "tp4", 32)]


def test_more_gpus_are_said():
    sentence = sentences(runs("tp4", [200.0]), runs("tp1", [100.0], num_gpus=1))[0]
    assert "tp4 delivers 2.00x tp1 at 32 concurrent (4 GPUs against 1: 0.50x per GPU)" in sentence
    per_gpu = (
        runs("tp4", [200.0], output_throughput_per_gpu=50.0),
        runs("tp1", [100.0], output_throughput_per_gpu=100.0),
    )
    assert sentences(*per_gpu, objective="per-gpu")[0].startswith("tp1 delivers 2.00x tp4 per GPU")


def test_the_lowest_latency_is_best_of_each_kind():
    tp4 = runs("tp4", [1.0], median_tpot_ms=10.0, median_ttft_ms=100.0)
    pp4 = runs("pp4", [1.0], median_tpot_ms=20.0, median_ttft_ms=50.0)
    assert sentences(tp4, pp4, objective="latency") == [
        "tp4 takes 0.50x the time per token of pp4 at 32 concurrent (one run each: no interval)",
        "pp4 takes 0.50x the time to the first token of tp4 at 32 concurrent (one run each: no "
        "interval)",
    ]


def test_goodput_needs_the_same_levels_and_something_good():
    good = runs("tp4", [1.0], goodput="ttft:9", request_goodput=3.0)
    assert sentences(
        good, runs("pp4", [1.0], goodput="ttft:9", request_goodput=1.0), objective="goodput"
    ) == ["tp4 serves 3.00x the good requests of pp4 at 32 concurrent (one run each: no interval)"]
    none = found(
        good, runs("pp4", [1.0], goodput="ttft:9", request_goodput=0.0), objective="goodput"
    )[0]
    assert (none.ratio, none.sentence) == (
        None,
        "tp4 against pp4 at 32 concurrent: no ratio in goodput, a run of pp4 has 0",
    )
    partly = runs("pp4", [1.0, 1.0], goodput="ttft:9", request_goodput=[0.0, 9.0])
    assert sentences(good, partly, objective="goodput")[0].endswith(
        "no ratio in goodput, a run of pp4 has 0"
    )
    assert (
        found(good, runs("pp4", [1.0], goodput="ttft:8", request_goodput=1.0), objective="goodput")
        == []
    )


def test_energy_counts_where_it_was_measured_and_is_valid():
    cells = [
        runs(name, [1.0], joules_per_output_token=j, power_valid=True)
        for name, j in (("tp4", 1.0), ("pp4", 4.0))
    ]
    assert "tp4 uses 0.25x the energy per token of pp4" in sentences(*cells, objective="energy")[0]
    for doubt in (False, None):
        doubtful = runs("dp4", [1.0], joules_per_output_token=0.1, power_valid=doubt)
        assert len(found(*cells, doubtful, objective="energy")) == 1
    assert found(runs("tp4", [1.0]), runs("pp4", [1.0]), objective="energy") == []


def test_every_objective_is_known():
    assert OBJECTIVES == ("throughput", "latency", "per-gpu", "goodput", "energy")


def test_each_metric_is_a_column_of_the_summary_with_its_unit():
    for metric in METRICS:
        field = SUMMARY.schema.field(metric.column)
        assert field.metadata[b"unit"].decode() == metric.unit
        assert metric.of(summary(**{metric.column: 7.0})) == 7.0
