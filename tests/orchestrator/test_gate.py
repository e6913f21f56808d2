"""A new result held against a base: what fails the gate, what passes it, what it leaves open."""

import json
import random
from dataclasses import replace

import pytest
from click.testing import CliRunner
from two_results_inputs import GPU, MANIFEST, OTHER_GPU, starts, with_metric, write_result

from orchestrator import cli
from orchestrator.analysis.comparing.compare import COMPARED
from orchestrator.analysis.comparing.gate import FAILED, OPEN, PASSED, Report, judged
from orchestrator.analysis.comparing.gates import gate_of, gateable
from orchestrator.analysis.comparing.surroundings import Surroundings
from orchestrator.analysis.comparing.two_results import cells_of
from orchestrator.errors import UserError

STEADY = [100.0, 101.0, 99.0]


def report(base, new, *gates, allow_missing=False):
    asked = [gate_of(text) for text in gates or ("output_throughput:0.95",)]
    outcomes = judged(cells_of(base), cells_of(new), asked)
    return Report(asked, Surroundings(), outcomes, allow_missing)


def only(base, new, *gates):
    (outcome,) = report(base, new, *gates).outcomes
    return outcome


def status(base, new, *gates, **given):
    return report(base, new, *gates, **given).status


# -- the interval decides


def test_an_interval_wholly_on_the_allowed_side_passes():
    new = starts([100.5, 99.5, 100.0])
    one = only(starts(STEADY), new)
    assert (one.outcome, one.cell) == ("within", "m.tp4.torch.bfloat16.short.c32")
    assert one.ci_low > 0.95
    assert (one.base, one.new, one.base_starts, one.new_starts) == (100.0, 100.0, 3, 3)
    assert "the base, not below 0.95" in one.sentence
    assert status(starts(STEADY), new) == PASSED == 0


def test_an_interval_wholly_beyond_the_limit_fails():
    one = only(starts(STEADY), starts([90.0, 91.0, 89.0]))
    assert one.outcome == "beyond"
    assert one.ci_high < 0.95
    assert "the base, below 0.95" in one.sentence
    assert status(starts(STEADY), starts([90.0, 91.0, 89.0])) == FAILED == 1


def test_an_interval_that_holds_the_limit_is_undecided_whatever_the_plain_ratio_says():
    for wide in ([80.0, 105.0, 85.0], [97.0, 80.0, 114.0]):
        one = only(starts(STEADY), starts(wide))
        assert one.ci_low < 0.95 < one.ci_high
        assert one.outcome == "undecided"
        assert "undecided: the interval holds 0.95" in one.sentence
        assert status(starts(STEADY), starts(wide)) == OPEN == 3
    assert "--num-starts 6" in report(starts(STEADY), starts([80.0, 105.0, 85.0])).advice


@pytest.mark.parametrize(
    ("base", "new", "which"),
    [
        (STEADY, [50.0], "of the new result"),
        ([100.0], STEADY, "of the base result"),
        ([100.0], [50.0], "each"),
        ([100.0], [100.0], "each"),
    ],
)
def test_one_start_of_a_side_is_undecided_and_says_which_and_what_to_do(base, new, which):
    said = report(starts(base), starts(new))
    (one,) = said.outcomes
    assert (one.outcome, one.ci_low, said.status) == ("undecided", None, OPEN)
    assert f"one start {which}, so no interval" in one.sentence
    assert "--num-starts 3" in said.advice


def test_many_runs_of_one_start_are_no_starts():
    base, new = (
        [
            replace(run, start=0, run=index)
            for index, run in enumerate(starts([level, level * 1.001, level * 0.999]))
        ]
        for level in (100.0, 90.0)
    )
    assert only(base, new).outcome == "undecided"


def test_what_was_observed_once_is_one_value_however_many_commands_repeat_it():
    base, new = (
        [replace(run, start=0, conditions=replace(run.conditions, block=run.run)) for run in runs]
        for runs in (
            with_metric("comm_exposed_pct", [10.0] * 3),
            with_metric("comm_exposed_pct", [20.0] * 3),
        )
    )
    one = only(base, new, "comm_exposed_pct:1.1")
    assert (one.outcome, one.base_starts, one.new_starts) == ("undecided", 1, 1)


def test_a_worse_cell_outweighs_an_undecided_one():
    base = [*starts(STEADY), *starts(STEADY, "pp4")]
    new = [*starts([50.0, 51.0, 49.0]), *starts([100.0], "pp4")]
    found = report(base, new)
    assert [one.outcome for one in found.outcomes] == ["undecided", "beyond"]
    assert found.status == FAILED
    assert found.conclusion == (
        "Gate failed: 1 beyond: m.tp4.torch.bfloat16.short.c32 output_throughput; "
        "1 undecided: m.pp4.torch.bfloat16.short.c32 output_throughput; 0 within."
    )


# -- any column, in its direction


@pytest.mark.parametrize(
    ("metric", "limit", "slightly_worse", "much_worse"),
    [
        ("output_throughput", 0.95, [98.0, 98.1, 97.9], [90.0, 90.1, 89.9]),
        ("median_ttft_ms", 1.05, [102.0, 102.1, 101.9], [110.0, 110.1, 109.9]),
        ("peak_memory_bytes", 1.05, [102, 102, 102], [110, 110, 110]),
        ("bubble_pct", 1.05, [102.0, 102.1, 101.9], [110.0, 110.1, 109.9]),
        ("model_flops_utilization", 0.95, [98.0, 98.1, 97.9], [90.0, 90.1, 89.9]),
        ("build_s", 1.05, [102.0, 102.1, 101.9], [110.0, 110.1, 109.9]),
    ],
)
def test_the_direction_of_a_column_says_which_side_fails(metric, limit, slightly_worse, much_worse):
    base = with_metric(metric, [100, 100, 100])
    asked = f"{metric}:{limit}"
    assert only(base, with_metric(metric, slightly_worse), asked).outcome == "within"
    assert only(base, with_metric(metric, much_worse), asked).outcome == "beyond"
    better = with_metric(metric, [200, 200, 200] if limit < 1 else [50, 50, 50])
    assert only(base, better, asked).outcome == "within"


def test_the_limit_itself_is_allowed():
    assert only(*[with_metric("weight_bytes", [7, 7])] * 2, "weight_bytes:1").outcome == "within"


def test_gates_repeat_and_each_is_judged_by_itself():
    base, new = (
        with_metric("median_ttft_ms", values) for values in ([50.0, 51.0, 49.0], [60.0, 61.0, 59.0])
    )
    found = report(base, new, "output_throughput:0.95", "median_ttft_ms:1.05")
    assert [(one.metric, one.limit, one.outcome) for one in found.outcomes] == [
        ("output_throughput", 0.95, "within"),
        ("median_ttft_ms", 1.05, "beyond"),
    ]
    assert found.status == FAILED


def test_every_measured_column_of_the_comparison_says_which_way_is_better():
    neither = {"steady_s", "bound_output_throughput"}
    measured = {
        one.name
        for one in COMPARED.columns
        if one.over_runs
        and one.unit in ("ms", "s", "J", "B", "GB/s", "tokens/s")
        and not one.name.startswith("predicted_")
    }
    assert measured - gateable().keys() <= neither
    assert {gateable()[name].better for name in ("output_throughput", "request_goodput")} == {
        "higher"
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output_throughput", "is not METRIC:RATIO"),
        (":0.9", "is not METRIC:RATIO"),
        ("output_throughput:", "the ratio '' is no number above 0"),
        ("output_throughput:0", "the ratio '0' is no number above 0"),
        ("output_throughput:-1", "the ratio '-1' is no number above 0"),
        ("output_throughput:nan", "the ratio 'nan' is no number above 0"),
        ("output_throughput:inf", "the ratio 'inf' is no number above 0"),
        ("output_througput:0.9", "did you mean 'output_throughput'? There are output_throughput"),
        ("compute_pct:1.1", "neither a higher nor a lower 'compute_pct' is better by itself"),
        ("status:1.1", "neither a higher nor a lower 'status' is better by itself"),
        ("num_runs:1.1", "neither a higher nor a lower 'num_runs' is better by itself"),
    ],
)
def test_what_is_no_gate_is_refused_with_what_there_is(text, words):
    with pytest.raises(UserError) as refused:
        gate_of(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


# -- what is not there


def test_a_cell_that_is_missing_fails_the_gate_unless_that_is_allowed():
    base = [*starts(STEADY), *starts(STEADY, "pp4")]
    found = report(base, starts(STEADY))
    assert [one.outcome for one in found.outcomes] == ["missing", "within"]
    assert found.status == FAILED
    assert "1 missing: m.pp4.torch.bfloat16.short.c32" in found.conclusion
    allowed = report(base, starts(STEADY), allow_missing=True)
    assert allowed.status == PASSED
    assert "1 missing, which is allowed" in allowed.conclusion


def test_a_cell_that_fails_now_fails_the_gate_even_where_missing_ones_are_allowed():
    failed = starts([None, None], reason="out_of_memory")
    one = only(starts(STEADY), failed)
    assert (one.outcome, one.metric) == ("failed", None)
    assert "out_of_memory" in one.sentence
    assert status(starts(STEADY), failed, allow_missing=True) == FAILED


def test_a_cell_that_the_base_did_not_complete_is_listed_and_does_not_matter():
    failed = starts([None], "pp4")
    for new, said in ((starts(STEADY, "pp4"), "completed now"), (failed, "failed in the base")):
        found = report([*starts(STEADY), *failed], [*starts(STEADY), *new])
        assert [one.outcome for one in found.outcomes] == ["failed in base", "within"]
        assert said in found.outcomes[0].sentence
        assert found.status == PASSED


def test_a_cell_of_the_new_result_alone_is_listed_and_does_not_matter():
    found = report(starts(STEADY), [*starts(STEADY), *starts(STEADY, "dp4")])
    assert [one.outcome for one in found.outcomes] == ["only in new", "within"]
    assert found.status == PASSED


def test_failed_runs_of_a_completed_cell_are_said():
    new = [*starts(STEADY), *starts([None], start=7, run=7, reason="timeout")]
    one = only(starts(STEADY), new)
    assert one.outcome == "within"
    assert "(1 of 4 runs of the new result left out: timeout)" in one.sentence


def test_a_metric_that_the_base_does_not_know_is_not_gated_and_that_alone_passes_nothing():
    base, new = starts(STEADY), with_metric("joules_per_output_token", [1.0, 1.1])
    one = only(base, new, "joules_per_output_token:1.05")
    assert (one.outcome, one.base) == ("not gated", None)
    assert "unknown in the base, so not gated" in one.sentence
    found = report(base, new, "joules_per_output_token:1.05")
    assert found.status == OPEN
    assert found.undecided == ["joules_per_output_token:1.05 (no cell could be held to it)"]
    assert found.advice == ""
    tpot = with_metric("median_tpot_ms", [1.0, 1.0])
    both = [*tpot, *starts(STEADY, "pp4")]
    assert status(both, both, "median_tpot_ms:1.05") == PASSED


def test_a_metric_that_only_the_new_result_lacks_is_undecided():
    one = only(with_metric("median_ttft_ms", [1.0, 1.1]), starts(STEADY), "median_ttft_ms:1.05")
    assert one.outcome == "undecided"
    assert "unknown in the new result" in one.sentence


def test_zeros_are_equal_to_each_other_and_have_no_ratio_to_anything_else():
    none, some = (with_metric("bubble_pct", [value] * 3) for value in (0.0, 1.0))
    assert only(none, none, "bubble_pct:1.05").outcome == "within"
    for base, new in ((none, some), (some, none)):
        one = only(base, new, "bubble_pct:1.05")
        assert one.outcome == "undecided"
        assert "no ratio" in one.sentence


def test_energy_of_runs_whose_power_is_not_valid_does_not_count():
    valid = with_metric("joules_per_output_token", [1.0, 1.01, 0.99], power_valid=True)
    doubted = with_metric("joules_per_output_token", [9.0, 9.0, 9.0], power_valid=False)
    asked = "joules_per_output_token:1.05"
    assert only(valid, valid, asked).outcome == "within"
    assert only(valid, doubted, asked).new is None
    assert only(valid, doubted, asked).outcome == "undecided"


def test_goodput_under_other_service_levels_is_undecided_with_both_of_them():
    one, other = (
        with_metric("request_goodput", [5.0, 5.1], goodput=level) for level in ("ttft:1", "ttft:2")
    )
    assert only(one, one, "request_goodput:0.9").outcome == "within"
    against = only(one, other, "request_goodput:0.9")
    assert (against.outcome, against.ratio) == ("undecided", None)
    assert "service levels of ttft:1 against ttft:2: give --goodput" in against.sentence


# -- which cells belong together


def test_cells_are_joined_by_what_they_are_and_not_by_the_experiments_name():
    base = [*starts(STEADY), *starts(STEADY, "pp4")]
    new = [*starts(STEADY, experiment="other"), *starts(STEADY, "dp4")]
    assert {one.joined.strategy: one.outcome for one in report(base, new).outcomes} == {
        "tp4": "within",
        "pp4": "missing",
        "dp4": "only in new",
    }


def test_a_closed_and_an_open_loop_are_not_the_same_cell():
    closed, open_ = starts(STEADY), starts(STEADY, request_rate=8.0, burstiness=1.0)
    assert {one.cell: one.outcome for one in report(closed, open_).outcomes} == {
        "m.tp4.torch.bfloat16.short.c32": "missing",
        "m.tp4.torch.bfloat16.short.c32.rate8": "only in new",
    }
    assert only(open_, open_).outcome == "within"
    burst = starts(STEADY, request_rate=8.0, burstiness=0.5)
    assert [one.outcome for one in report(open_, burst).outcomes] == ["only in new", "missing"]


def test_what_an_ablation_took_out_is_no_result_of_its_layout():
    assert only([*starts(STEADY), *starts([1.0], ablation="comm")], starts(STEADY)).base == 100.0


# -- how often it is wrong


def experiment(rng, cells, count, noise=0.01):
    """A result of `cells` cells of the same truth, each start with its own noise."""
    (run,) = starts([1.0])
    return [
        replace(
            run,
            start=start,
            run=start,
            cell=replace(run.cell, max_concurrency=cell),
            throughput=replace(run.throughput, output_throughput=100.0 * rng.gauss(1.0, noise)),
        )
        for cell in range(1, cells + 1)
        for start in range(count)
    ]


@pytest.mark.parametrize("count", [3, 5])
def test_equal_results_of_18_cells_are_hardly_ever_beyond(count):
    """With 1% between starts, 5% of room and equal truth; a 95% interval alone would leave 1 out
    in most experiments of so many cells."""
    rng, trials = random.Random(count), 60
    found = [report(experiment(rng, 18, count), experiment(rng, 18, count)) for _ in range(trials)]
    assert sum(one.status == FAILED for one in found) <= 0.02 * trials
    cells = [outcome for one in found for outcome in one.outcomes]
    assert sum(one.outcome == "within" for one in cells) >= 0.9 * len(cells)


def test_a_cell_that_is_ten_percent_slower_is_found_among_18():
    rng = random.Random(7)
    base, new = experiment(rng, 18, 5), experiment(rng, 18, 5)
    slower = [
        replace(
            run,
            throughput=replace(
                run.throughput, output_throughput=0.9 * run.throughput.output_throughput
            ),
        )
        if run.cell.max_concurrency == 4
        else run
        for run in new
    ]
    found = report(base, slower)
    assert found.status == FAILED
    assert [one.joined.max_concurrency for one in found.failing] == [4]


def test_with_one_start_a_side_equal_results_are_always_undecided():
    rng = random.Random(0)
    found = [report(experiment(rng, 18, 1), experiment(rng, 18, 1)) for _ in range(20)]
    assert {one.status for one in found} == {OPEN}
    assert {outcome.outcome for one in found for outcome in one.outcomes} == {"undecided"}


# -- the command


def call(*arguments):
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)])


def test_the_exit_status_tells_how_the_gate_ended(tmp_path):
    base = write_result(tmp_path / "base", {("tp4", 32): STEADY})
    for name, speeds, ended in (
        ("same", STEADY, 0),
        ("slower", [50.0, 51.0, 49.0], 1),
        ("one", [100.0], 3),
        ("lost", [None, None], 1),
    ):
        new = write_result(tmp_path / name, {("tp4", 32): speeds})
        done = call(base, new, "--fail-below", "0.95")
        assert done.exit_code == ended, done.output
        assert done.stdout == call(base, new, "--gate", "output_throughput:0.95").stdout


def test_eight_of_nine_cells_may_not_vanish(tmp_path):
    cells = {(layout, users): STEADY for layout in ("tp4", "pp4", "dp4") for users in (1, 8, 32)}
    base = write_result(tmp_path / "base", cells)
    new = write_result(tmp_path / "new", {("tp4", 8): STEADY})
    done = call(base, new, "--fail-below", "0.95")
    assert done.exit_code == 1
    assert "8 missing" in done.stdout.splitlines()[-1]
    assert call(base, new, "--fail-below", "0.95", "--allow-missing").exit_code == 0


def test_the_surroundings_come_before_the_cells_and_all_is_in_the_json(tmp_path):
    base = write_result(tmp_path / "base", {("tp4", 32): STEADY})
    there = {**MANIFEST, "gpus": [{**OTHER_GPU, "power_limit_w": 500.0}]}
    new = write_result(tmp_path / "new", {("tp4", 32): [50.0, 51.0, 49.0]}, there)
    text = call(base, new, "--fail-below", "0.95").stdout
    node = "another node: yes, GPUs GPU-aaaaaaaa in the base, GPU-cccccccc in the new result"
    assert text.splitlines()[0] == node
    assert text.index("gpus.power_limit_w") < text.index("m.tp4.torch.bfloat16.short.c32")
    data = json.loads(call(base, new, "--fail-below", "0.95", "--json").stdout)
    assert (data["outcome"], data["another_node"], data["node"]) == ("failed", True, node)
    assert data["gates"] == ["output_throughput:0.95"]
    assert data["failing"] == ["m.tp4.torch.bfloat16.short.c32 output_throughput"]
    assert data["environment"] == [{"what": "gpus.power_limit_w", "base": "700.0", "new": "500.0"}]
    (cell,) = data["cells"]
    assert (cell["outcome"], cell["metric"], cell["better"]) == (
        "beyond",
        "output_throughput",
        "higher",
    )


def test_a_gate_is_read_before_any_result(tmp_path):
    for flags, words in (
        (("--gate", "output_througput:0.9"), "did you mean 'output_throughput'?"),
        (("--gate", "output_throughput"), "is not METRIC:RATIO"),
        (("--gate", "output_throughput:0"), "no number above 0"),
        (("--fail-below", "0"), "--fail-below"),
        (("--allow-missing",), "--allow-missing is of a gate"),
    ):
        done = call(tmp_path / "none", tmp_path / "none", *flags)
        assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (2, 1, "")
        assert words in done.stderr


def test_what_cannot_be_joined_is_refused_in_one_line(tmp_path):
    base = write_result(tmp_path / "base", {("tp4", 32): STEADY})
    new = write_result(tmp_path / "new", {("pp4", 32): STEADY})
    open_ = write_result(tmp_path / "open", {("tp4", 32): STEADY}, request_rate=8.0, burstiness=1.0)
    trace = write_result(tmp_path / "trace", {("tp4", 32): STEADY}, request_rate=8.0)
    twice = tmp_path / "both"
    for name in ("one", "two"):
        write_result(twice / name, {("tp4", 32): STEADY})
    for arguments, words in (
        ((base, new), "no cell in common; give two results of the same models"),
        ((base,), "BASE and NEW; 1 were given"),
        ((base, open_), "one is a closed loop, the other an open loop at a rate of 8/s"),
        ((base, trace), "the other an open loop at its own times, on average 8/s"),
        ((twice, base), "the same cell in one and two"),
        ((base, base, "--objective", "latency"), "leave out --objective"),
        ((base, base, "--html", tmp_path / "x.html"), "leave out --html"),
    ):
        done = call(*arguments, "--fail-below", "0.9")
        assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (2, 1, "")
        assert words in done.stderr


def test_every_experiment_of_a_folder_is_held_against_its_counterpart(tmp_path):
    """The first of each root is the same on both sides; what differs is in the second, in a
    manifest of its own."""
    for root, driver, seed in (("base", "580", 0), ("new", "590", 1)):
        write_result(tmp_path / root / "a", {("tp4", 32): STEADY})
        manifest = {**MANIFEST, "driver_version": driver, "experiment": {"seed": seed}}
        arrivals = {"request_rate": 8.0, "burstiness": 1.0}
        write_result(tmp_path / root / "b", {("tp4", 32): STEADY}, manifest, **arrivals)
    data = json.loads(
        call(tmp_path / "base", tmp_path / "new", "--fail-below", "0.9", "--json").stdout
    )
    assert data["environment"] == [
        {"what": "work.seed", "base": "0", "new": "1"},
        {"what": "driver_version", "base": "580", "new": "590"},
    ]
    assert {cell["request_rate"]: cell["outcome"] for cell in data["cells"]} == {
        None: "within",
        8.0: "within",
    }


def test_two_results_on_the_gpus_of_one_node_are_said_to_be_of_one_node(tmp_path):
    folders = [write_result(tmp_path / name, {("tp4", 32): STEADY}) for name in ("a", "b")]
    assert GPU["uuid"].startswith("GPU-aaaaaaaa")
    assert "another node: no, the same GPUs" in call(*folders, "--fail-below", "0.9").stdout
