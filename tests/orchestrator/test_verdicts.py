"""What is shown of each pair of layouts, in rows and in words."""

import pytest
from summaries import summary

from orchestrator.analysis.comparing.metrics import METRICS, OBJECTIVES, SHARES
from orchestrator.analysis.comparing.significance import DIFFERENT, EQUIVALENT, NOT_SHOWN
from orchestrator.analysis.comparing.verdicts import verdicts
from orchestrator.analysis.summary import SUMMARY

STEADY = [100.0, 101.0, 99.0, 100.0, 100.0]


def starts(strategy, throughputs, **fields):
    """A run of a layout for each throughput, each in a start of its own. fields: the same for all
    of them, or a list of one for each."""
    base = {"strategy": strategy, "max_concurrency": 32, "num_gpus": 4}
    each = [
        {name: value[i] if isinstance(value, list) else value for name, value in fields.items()}
        for i in range(len(throughputs))
    ]
    return [
        summary(**{**base, "start": i, "output_throughput": tokens, **each[i]})
        for i, tokens in enumerate(throughputs)
    ]


def times(factor, values=STEADY):
    return [factor * value for value in values]


def found(*cells, objective="throughput", difference=0.02):
    rows = [row for cell in cells for row in cell]
    return [one for one in verdicts(rows, difference) if one.objective == objective]


def sentences(*cells, **how):
    return [one.sentence for one in found(*cells, **how)]


# -- three verdicts


def test_a_difference_is_stated_with_its_interval():
    over, under = [230.0, 232.0, 231.0, 230.0, 232.0], [100.0, 98.0, 102.0, 99.0, 101.0]
    (row,) = found(starts("tp4", over), starts("pp4", under))
    assert (row.better, row.other, row.verdict) == ("tp4", "pp4", DIFFERENT)
    assert row.ratio == pytest.approx(2.31, abs=1e-4)
    assert (row.ci_low < 2.31 < row.ci_high, row.rounds) == (True, 5)
    assert row.starts_needed is row.starts_to_equal is None
    assert (
        row.sentence
        == f"tp4 delivers 2.31x pp4 [{row.ci_low:.2f}, {row.ci_high:.2f}] at 32 concurrent "
        "(5 starts)"
    )


def test_layouts_are_equivalent_where_the_ratio_is_shown_to_be_within_what_matters():
    (row,) = found(starts("tp2", STEADY), starts("dp2", [100.1, 100.9, 99.1, 99.8, 100.2]))
    assert row.verdict == EQUIVALENT
    assert row.p_equivalent < 0.05 < row.p_different
    assert row.sentence.startswith("dp2 and tp2 are equivalent within 2% at 32 concurrent: 1.00")
    assert row.sentence.endswith("(5 starts)")


def test_a_difference_below_what_matters_is_said_beside_the_equivalence():
    exact = [100.4, 101.5, 99.4, 100.5, 100.4]
    (row,) = found(starts("tp2", STEADY), starts("dp2", exact))
    assert (row.verdict, row.p_different < 0.05) == (EQUIVALENT, True)
    assert row.sentence.endswith("; they differ, by less than that")
    (row,) = found(starts("tp2", STEADY), starts("dp2", exact), difference=0.001)
    assert (row.verdict, row.difference) == (DIFFERENT, 0.001)


def test_what_is_not_shown_comes_with_the_starts_that_would_show_it():
    (row,) = found(starts("tp2", [101.0, 104.0, 99.0]), starts("dp2", [101.0, 99.0, 100.0]))
    assert row.verdict == NOT_SHOWN
    assert row.ci_low < 1 < row.ci_high
    assert row.sentence == (
        f"not shown: tp2 against dp2 at 32 concurrent, 1.01x [{row.ci_low:.2f}, "
        f"{row.ci_high:.2f}] (3 starts); {row.starts_needed} starts would show a difference of 2%, "
        f"{row.starts_to_equal} starts would show that there is none"
    )
    assert 3 < row.starts_needed < 40


def test_a_shared_load_of_noise_cancels_so_that_pairs_of_a_round_show_what_means_do_not():
    slower = [1.0, 0.9, 0.8, 0.7]
    over = [200.0 * s * e for s, e in zip(slower, (1.0, 1.001, 0.999, 1.0), strict=True)]
    pair = starts("tp4", over), starts("pp4", [100.0 * s for s in slower])
    (row,) = found(*pair)
    assert (row.verdict, row.ratio) == (DIFFERENT, pytest.approx(2.0, abs=0.01))
    assert row.ci_high - row.ci_low < 0.02


# -- what may be paired


def test_runs_of_one_start_are_averaged_before_anything_is_tested():
    """Two identical replicas: runs agree within each start, the starts lie 3.4% apart."""
    runs = [
        summary(strategy=name, max_concurrency=32, run=i, output_throughput=rate + i / 10)
        for name, rate in (("tp2", 103.4), ("dp2", 100.0))
        for i in range(10)
    ]
    (row,) = found(runs)
    assert (row.verdict, row.rounds, row.ci_low, row.p_different) == (NOT_SHOWN, 1, None, None)


def test_with_one_start_each_it_is_said_and_how_to_get_more():
    (row,) = found(starts("tp4", [200.0]), starts("pp4", [100.0]))
    assert (row.ratio, row.verdict, row.ci_low) == (pytest.approx(2.0), NOT_SHOWN, None)
    assert row.starts_needed is None
    assert row.sentence == (
        "not shown: tp4 against pp4 at 32 concurrent, 2.00x with one start each: no interval "
        "(--num-starts 5 gives one)"
    )


def test_starts_of_different_commands_are_never_pairs():
    (row,) = found(starts("tp4", times(2.0), block=0), starts("pp4", STEADY, block=1))
    assert (row.rounds, row.verdict, row.ci_low) == (0, NOT_SHOWN, None)
    assert "2.00x with no rounds in common: run both layouts in one command" in row.sentence


def test_pairs_are_of_the_rounds_that_both_have():
    over = starts("tp4", [200.0, 180.0, 160.0])
    (row,) = found(over, starts("pp4", [100.0, 90.0, 80.0, 7.0]))
    assert (row.ratio, row.ci_low, row.ci_high) == (pytest.approx(2.0),) * 3
    assert row.rounds == 3
    (row,) = found(over, starts("pp4", [100.0]))
    assert "with one round in common" in row.sentence


def test_failed_starts_are_in_no_pair():
    failed = starts("dp4", [None, None], status="failed")
    rows = found(
        starts("tp4", [10.0]),
        starts("pp4", [20.0]),
        failed,
        starts("tp4", [9.0], max_concurrency=1),
    )
    assert [(row.better, row.other, row.max_concurrency) for row in rows] == [("pp4", "tp4", 32)]


# -- all pairs, one family an objective


def test_every_pair_has_a_row_and_those_of_the_leader_come_first():
    rows = found(starts("pp4", [50.0]), starts("tp4", [100.0]), starts("dp4", [80.0]))
    assert [(row.better, row.other) for row in rows] == [
        ("tp4", "dp4"),
        ("tp4", "pp4"),
        ("dp4", "pp4"),
    ]


DOUBTFUL = [102.0, 104.0, 101.0, 100.5, 103.0]


def test_an_interval_without_1_whose_pair_fails_holm_is_not_shown():
    one = [starts("tp2", DOUBTFUL), starts("dp2", STEADY)]
    (alone,) = found(*one, difference=0.001)
    others = [
        starts(name, values, max_concurrency=c)
        for c in range(1, 18)
        for name, values in (("tp2", STEADY), ("dp2", [101.0, 99.0, 100.0, 101.0, 99.0]))
    ]
    rows = found(*one, *others, difference=0.001)
    (among,) = [row for row in rows if row.max_concurrency == 32]
    assert (alone.verdict, among.verdict) == (DIFFERENT, NOT_SHOWN)
    assert (among.ci_low, among.ci_high) == (alone.ci_low, alone.ci_high)
    assert among.ci_low > 1
    assert among.p_different == pytest.approx(18 * alone.p_different)
    assert among.starts_needed > 5


def test_a_family_is_of_one_objective_with_all_of_its_metrics():
    tpot = {"tp2": [9.0, 9.1, 9.2, 9.0, 9.1], "dp2": times(1.02, [9.0, 9.2, 9.1, 9.1, 9.0])}

    def p_of(**more):
        runs = [run for n in tpot for run in starts(n, STEADY, median_tpot_ms=tpot[n], **more)]
        return {one.metric: one.p_different for one in verdicts(runs)}

    alone, beside = p_of(), p_of(median_ttft_ms=STEADY[::-1])
    assert beside["median_tpot_ms"] == pytest.approx(2 * alone["median_tpot_ms"])
    assert beside["output_throughput"] == alone["output_throughput"]


def test_families_of_two_experiments_are_apart():
    one = [*starts("tp2", DOUBTFUL), *starts("dp2", STEADY)]
    both = [*one, *starts("tp2", STEADY, experiment="f"), *starts("dp2", DOUBTFUL, experiment="f")]
    p = {row.p_different for row in verdicts(both)}
    assert len(p) == 1
    assert p == {row.p_different for row in verdicts(one)}


# -- the metrics


def test_more_gpus_are_said():
    (sentence,) = sentences(starts("tp4", times(2.0)), starts("tp1", STEADY, num_gpus=1))
    assert "at 32 concurrent (4 GPUs against 1: 0.50x per GPU) (5 starts)" in sentence
    per_gpu = (
        starts("tp4", STEADY, output_throughput_per_gpu=STEADY),
        starts("tp1", STEADY, output_throughput_per_gpu=times(2.0), num_gpus=1),
    )
    assert sentences(*per_gpu, objective="per-gpu")[0].startswith("tp1 delivers 2.000x tp4 per GPU")


def test_the_lowest_latency_is_best_of_each_kind():
    tp4 = starts("tp4", STEADY, median_tpot_ms=STEADY, median_ttft_ms=times(2.0))
    pp4 = starts("pp4", STEADY, median_tpot_ms=times(2.0), median_ttft_ms=STEADY[::-1])
    first, second = sentences(tp4, pp4, objective="latency")
    assert first.startswith("tp4 takes 0.500x the time per token of pp4 [")
    assert second.startswith("pp4 takes 0.500x the time to the first token of tp4 [")


def test_goodput_needs_the_same_levels():
    good = starts("tp4", STEADY, goodput="ttft:9", request_goodput=times(3.0))
    other = starts("pp4", STEADY, goodput="ttft:9", request_goodput=STEADY[::-1])
    assert sentences(good, other, objective="goodput")[0].startswith(
        "tp4 serves 3.00x the good requests of pp4 ["
    )
    elsewhere = starts("pp4", STEADY, goodput="ttft:8", request_goodput=STEADY)
    assert found(good, elsewhere, objective="goodput") == []


def test_a_layout_that_serves_nothing_is_shown_to_be_worse_without_a_ratio():
    good = starts("tp4", STEADY, goodput="ttft:9", request_goodput=times(3.0))
    none = starts("pp4", STEADY, goodput="ttft:9", request_goodput=0.0)
    (row,) = found(good, none, objective="goodput")
    assert (row.ratio, row.ci_low, row.verdict) == (None, None, DIFFERENT)
    assert row.sentence == (
        "different: tp4 against pp4 in goodput at 32 concurrent, no ratio, as pp4 has 0"
    )
    (row,) = found(
        none, starts("dp4", STEADY, goodput="ttft:9", request_goodput=0.0), objective="goodput"
    )
    assert (row.ratio, row.verdict, row.p_different) == (None, NOT_SHOWN, None)


def test_a_start_that_served_nothing_counts_as_that():
    good = starts("tp4", STEADY, goodput="ttft:9", request_goodput=3.0)
    partly = starts("pp4", STEADY, goodput="ttft:9", request_goodput=[0.0, 9.0, 0.0, 9.0, 0.0])
    (row,) = found(good, partly, objective="goodput")
    assert (row.better, row.ratio, row.verdict) == ("pp4", pytest.approx(1.2), NOT_SHOWN)


def test_energy_counts_where_it_was_measured_and_is_valid():
    cells = [
        starts(name, STEADY, joules_per_output_token=j, power_valid=True)
        for name, j in (("tp4", STEADY), ("pp4", times(4.0)))
    ]
    assert "tp4 uses 0.250x the energy per token of pp4" in sentences(*cells, objective="energy")[0]
    for doubt in (False, None):
        doubtful = starts("dp4", STEADY, joules_per_output_token=0.1, power_valid=doubt)
        assert len(found(*cells, doubtful, objective="energy")) == 1
    assert found(starts("tp4", STEADY), starts("pp4", STEADY), objective="energy") == []


def test_every_objective_is_known():
    assert OBJECTIVES == ("throughput", "latency", "per-gpu", "goodput", "energy")


def test_each_figure_is_a_column_of_the_summary_with_its_unit():
    for figure in (*METRICS, *SHARES):
        field = SUMMARY.schema.field(figure.column)
        assert field.metadata[b"unit"].decode() == figure.unit
        assert figure.of(summary(**{figure.column: 7.0})) == 7.0
