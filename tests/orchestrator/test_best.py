"""Which layouts are best under a load: a set, or nobody."""

import itertools

from click.testing import CliRunner
from summaries import summary, write_run

from orchestrator import cli
from orchestrator.analysis.comparing import findings
from orchestrator.analysis.comparing.best import best
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.experiment import Cell, Deployment, Experiment, Run, Scenario
from orchestrator.store.identity import identity_of
from orchestrator.store.store import Store

STEADY = [100.0, 101.0, 99.0, 100.0, 100.0]
NEAR = [101.0, 99.0, 100.0, 101.0, 98.0]


def starts(strategy, values, **fields):
    return [
        summary(
            strategy=strategy,
            start=i,
            output_throughput=value,
            **{n: v[i] if isinstance(v, list) else v for n, v in fields.items()},
        )
        for i, value in enumerate(values)
    ]


def times(factor, values=STEADY):
    return [factor * value for value in values]


def found(*cells, metric="output_throughput"):
    rows = best(rulings([row for cell in cells for row in cell]))
    (one,) = [one for one in rows if one.metric == metric]
    return one


def test_the_best_are_the_leader_and_all_that_are_not_shown_to_be_worse():
    one = found(starts("dp2", STEADY), starts("tp2", NEAR), starts("pp2", times(0.5)))
    assert (one.leader, one.layouts, one.reason) == ("dp2", ["dp2", "tp2"], None)


def test_a_layout_that_is_equivalent_to_the_leader_is_among_the_best():
    slightly = [99.6, 100.5, 98.6, 99.5, 99.6]
    one = found(starts("dp2", STEADY), starts("tp2", slightly))
    assert one.layouts == ["dp2", "tp2"]


def test_where_nobody_made_anything_that_is_said_and_not_that_rounds_are_missing():
    zeros = [0.0] * 3
    one = found(starts("dp2", zeros), starts("tp2", zeros))
    assert (one.layouts, one.reason) == (None, "every start of both has 0")


def test_lower_is_better_where_it_is():
    fast, slow = times(0.5), STEADY[::-1]
    one = found(
        starts("tp2", STEADY, median_tpot_ms=fast),
        starts("pp2", STEADY, median_tpot_ms=slow),
        metric="median_tpot_ms",
    )
    assert (one.leader, one.layouts) == ("tp2", ["tp2"])


def test_with_one_start_each_nothing_is_shown_and_the_reason_is_said():
    one = found(starts("tp2", [200.0]), starts("pp2", [100.0]))
    assert (one.leader, one.layouts) == ("tp2", None)
    assert one.reason == "one start each: no interval (--num-starts 5 gives one)"


def test_a_layout_alone_is_the_best_of_nothing():
    one = found(starts("tp2", STEADY))
    assert (one.leader, one.layouts, one.reason) == ("tp2", None, "no other layout has a figure")


def test_nobody_wins_an_objective_that_a_faster_layout_has_no_figure_for():
    valid = {"joules_per_output_token": 1.0, "power_valid": True}
    doubtful = {"joules_per_output_token": 0.5, "power_valid": False}
    energy = "joules_per_output_token"
    tp2, pp2 = starts("tp2", STEADY, **valid), starts("pp2", times(0.9), **valid)
    one = found(tp2, pp2, starts("dp2", times(2.0), **doubtful), metric=energy)
    assert (one.leader, one.layouts) == (None, None)
    assert one.reason == (
        "nobody is best in energy per token: dp2 delivers more tokens than tp2, and its "
        "figure is not known"
    )
    one = found(tp2, pp2, starts("dp2", times(0.1), **doubtful), metric=energy)
    assert one.leader == "tp2"
    failed = [summary(strategy="dp2", status="failed", output_throughput=None)]
    assert found(tp2, pp2, failed, metric=energy).leader == "tp2"


def test_where_each_is_beaten_by_another_nobody_leads():
    """A beats B in the round that both have, B beats C, and C beats A."""
    runs = [
        summary(strategy=name, start=at, output_throughput=rate)
        for at, pair in enumerate((("a", "b"), ("b", "c"), ("c", "a")))
        for name, rate in zip(pair, (2.0, 1.0), strict=True)
    ]
    one = found(runs)
    assert one.leader is None
    assert "each is beaten by another" in one.reason


def test_an_objective_that_no_layout_has_a_figure_for_is_said_to_have_none(tmp_path):
    store = Store(tmp_path / "m-1")
    store.create()
    cell = Cell(Deployment("m", "tp2", "torch", "bfloat16"), Scenario("short", 256, 128), 32)
    write_run(store, Run(cell, 0, 0), output_throughput=100.0)
    asked = ["compare", str(store.folder), "--objective"]
    said = " ".join(CliRunner().invoke(cli.main, [*asked, "goodput"]).stdout.split())
    assert "No layout has a figure for goodput: give service levels" in said
    assert "No layout has" not in CliRunner().invoke(cli.main, [*asked, "throughput"]).stdout


def test_the_leader_is_never_less_than_another_in_the_rounds_that_both_have():
    """Whatever rounds are missing: a verdict never says that another delivers more than it."""
    rates = {"a": [10.0, 11.0, 9.0], "b": [10.5, 10.0, 9.5], "c": [9.0, 12.0, 11.0]}
    kept = list(itertools.product((True, False), repeat=3))
    for of_a, of_b, of_c in list(itertools.product(kept, repeat=3))[::7]:
        runs = [
            summary(strategy=name, start=at, output_throughput=rates[name][at])
            for name, there in zip("abc", (of_a, of_b, of_c), strict=True)
            for at in range(3)
            if there[at]
        ]
        for ruling in rulings(runs):
            (row,) = [one for one in best([ruling]) if one.metric == "output_throughput"]
            better = {
                one.better for one in ruling.verdicts if row.leader in (one.better, one.other)
            }
            assert better <= {row.leader}


def test_the_sentences_under_a_table_are_the_leaders_and_the_document_has_every_pair(tmp_path):
    store = Store(tmp_path / "m-1")
    store.create()
    layouts = {"tp2": STEADY, "dp2": times(0.9, NEAR), "pp2": times(0.5)}
    for (layout, values), start in itertools.product(layouts.items(), range(5)):
        cell = Cell(Deployment("m", layout, "torch", "bfloat16"), Scenario("short", 256, 128), 32)
        slow = {"median_ttft_ms": 1e3 / values[start], "median_tpot_ms": values[start]}
        gpu = {"device_name": "NVIDIA H200"}
        write_run(store, Run(cell, start, 0), output_throughput=values[start], **slow, **gpu)
    found = findings.of_folders([store.folder])
    (under,) = found.sentences("throughput").values()
    assert [sentence.split(" delivers")[0] for sentence in under] == ["tp2", "tp2"]
    data = found.as_data()
    pairs = [(v["better"], v["other"]) for v in data["verdicts"] if v["objective"] == "throughput"]
    assert pairs == [("tp2", "dp2"), ("tp2", "pp2"), ("dp2", "pp2")]
    assert data["best"][0]["layouts"] == ["tp2"]
    by_latency = findings.of_folders([store.folder], objective="latency")
    assert [one.cell.strategy for one in by_latency.comparison] == ["pp2", "dp2", "tp2"]

    def printed(*flags):
        done = CliRunner().invoke(cli.main, ["compare", str(store.folder), *flags])
        assert done.exit_code == 0, done.output
        return done.stdout

    lines = [line.split() for line in printed("--objective", "latency").splitlines() if line]
    names = [words[0] for words in lines if words and words[0] in layouts]
    assert names[:3] == ["pp2", "dp2", "tp2"]
    within = "tp2 and dp2 are equivalent within 20% at 32 concurrent"
    assert within in " ".join(printed("--difference", "0.2").split())
    assert within not in " ".join(printed().split())


def test_the_difference_that_matters_is_no_part_of_what_names_results():
    assert identity_of(Experiment(difference=0.1)) == identity_of(Experiment())


def test_the_difference_is_the_one_that_was_asked_for_when_the_results_were_made(tmp_path):
    store = Store(tmp_path / "m-1")
    store.create()
    store.update_manifest(experiment={"difference": 0.3})
    for layout, start in itertools.product(("tp2", "dp2"), range(3)):
        cell = Cell(Deployment("m", layout, "torch", "bfloat16"), Scenario("short", 1, 2), 32)
        write_run(store, Run(cell, start, 0), output_throughput=STEADY[start])
    (row,) = findings.of_folders([store.folder]).verdicts
    assert row.difference == 0.3
    (row,) = findings.of_folders([store.folder], difference=0.1).verdicts
    assert row.difference == 0.1


def test_a_dispute_is_said_in_place_of_the_verdicts(tmp_path):
    store = Store(tmp_path / "m-1")
    store.create()
    for layout, speed, valid in (("tp2", 1.0, True), ("dp2", 2.0, False)):
        for start in range(3):
            cell = Cell(Deployment("m", layout, "torch", "bfloat16"), Scenario("short", 1, 2), 32)
            energy = {"joules_per_output_token": 1.0, "power_valid": valid}
            write_run(store, Run(cell, start, 0), output_throughput=speed, **energy)
    (said,) = findings.of_folders([store.folder]).sentences("energy").values()
    assert said[0].startswith("nobody is best in energy per token: dp2 delivers more tokens")
