"""A new result against a base: what fails a build, and what is only said."""

import json

from click.testing import CliRunner
from summaries import summary, write_run

from orchestrator import cli, commands
from orchestrator.analysis.comparing import regression
from orchestrator.analysis.comparing.metrics import OBJECTIVES
from orchestrator.analysis.comparing.regression import Difference
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.store import Store

GPU = {"name": "H200", "memory_bytes": 1, "sm_clock_mhz": 1000, "uuid": "a", "power_limit_w": 700.0}
MANIFEST = {
    "versions": {"torch": "2.11", "numpy": "2"},
    "gpus": [GPU, GPU],
    "driver_version": "580",
    "experiment": {"seed": 0},
}


def rows(strategy, throughputs, status="completed", **fields):
    base = {"model": "m", "strategy": strategy, "max_concurrency": 32, "status": status}
    return [
        summary(**{**base, "run": i, "output_throughput": value, **fields})
        for i, value in enumerate(throughputs)
    ]


def compared(base, new, fail_below=0.95):
    (cell,) = regression.compared(base, new, fail_below)
    return cell


def verdict_of(base, new):
    return {cell.cell: cell.verdict for cell in regression.compared(base, new, 0.95)}


# -- what is a regression


def test_a_ratio_whose_whole_interval_is_below_is_a_regression():
    cell = compared(rows("tp4", [100.0, 101.0, 99.0]), rows("tp4", [90.0, 91.0, 89.0]))
    assert (cell.verdict, cell.cell) == ("slower", "m.tp4.torch.bfloat16.short.c32")
    assert cell.ci_high < 0.95
    assert ", below 0.95" in cell.sentence


def test_a_ratio_below_whose_interval_reaches_above_is_noise():
    cell = compared(rows("tp4", [100.0, 101.0, 99.0]), rows("tp4", [80.0, 105.0, 85.0]))
    assert cell.ratio < 0.95 < cell.ci_high
    assert cell.verdict == "ok"


def test_single_runs_are_judged_by_the_plain_ratio_and_that_is_said():
    cell = compared(rows("tp4", [100.0]), rows("tp4", [94.0]))
    assert (cell.verdict, cell.ci_high) == ("slower", None)
    assert "no interval, the plain ratio decides" in cell.sentence
    assert compared(rows("tp4", [100.0]), rows("tp4", [96.0])).verdict == "ok"


def test_a_cell_that_fails_now_is_a_regression_and_one_that_failed_before_is_not():
    failed = rows("tp4", [None], "failed", reason="out_of_memory")
    assert compared(rows("tp4", [100.0]), failed).verdict == "failed"
    assert "out_of_memory" in compared(rows("tp4", [100.0]), failed).sentence
    assert compared(failed, rows("tp4", [100.0])).verdict == "ok"
    assert compared(failed, failed).verdict == "ok"


def test_cells_are_joined_by_what_they_are_and_not_by_the_experiments_name():
    base = [*rows("tp4", [100.0]), *rows("pp4", [50.0])]
    new = [*rows("tp4", [100.0], experiment="other"), *rows("dp4", [70.0])]
    assert {cell.strategy: cell.verdict for cell in regression.compared(base, new, 0.95)} == {
        "tp4": "ok",
        "pp4": "only in base",
        "dp4": "only in new",
    }


def test_a_closed_and_an_open_loop_are_not_the_same_cell():
    closed, open_ = rows("tp4", [100.0]), rows("tp4", [50.0], request_rate=8.0, burstiness=1.0)
    assert verdict_of(closed, open_) == {
        "m.tp4.torch.bfloat16.short.c32": "only in base",
        "m.tp4.torch.bfloat16.short.c32.rate8": "only in new",
    }
    assert compared(open_, open_).verdict == "ok"
    burst = rows("tp4", [50.0], request_rate=8.0, burstiness=0.5)
    assert set(verdict_of(open_, burst).values()) == {"only in base", "only in new"}


# -- what is different besides


def test_differences_in_the_environment_name_the_field():
    newer = {
        **MANIFEST,
        "versions": {"torch": "2.12", "numpy": "2", "scipy": "1"},
        "gpus": [GPU],
        "experiment": {"seed": 1},
    }
    found = regression.differences(MANIFEST, newer)
    assert Difference("versions.torch", "2.11", "2.12") in found
    assert Difference("versions.scipy", "-", "1") in found
    assert Difference("gpus.1.name", "H200", "-") in found
    assert Difference("work.seed", "0", "1") in found
    assert not any("numpy" in one.what or "gpus.0" in one.what for one in found)


def test_how_requests_arrive_and_from_where_is_part_of_the_work():
    asked = {
        "request_rate": 8.0,
        "burstiness": 0.5,
        "dataset_path": "b.jsonl",
        "num_warmups": 0,
        "seed": 0,
    }
    found = regression.differences(MANIFEST, {**MANIFEST, "experiment": asked})
    assert {one.what for one in found} == {
        "work.request_rate",
        "work.burstiness",
        "work.dataset_path",
        "work.num_warmups",
    }


def test_a_clock_or_an_identity_that_changes_by_itself_is_no_difference():
    moved = {
        **MANIFEST,
        "gpus": [{**GPU, "sm_clock_mhz": 1980, "uuid": "b"}, GPU],
        "started_at": "later",
    }
    assert regression.differences(MANIFEST, moved) == []


# -- the command


def result(folder, strategy, throughputs, concurrencies=(32,), rate=None, **fields):
    """A folder of results as a submit leaves it."""
    store = Store(folder)
    store.create()
    store.update_manifest(**MANIFEST | fields)
    deployment = Deployment("m", strategy, "torch", "bfloat16")
    for concurrency in concurrencies:
        for index, throughput in enumerate(throughputs):
            run = Run(Cell(deployment, Scenario("short", 256, 128), concurrency), index)
            write_run(
                store,
                run,
                output_throughput=throughput * concurrency,
                median_tpot_ms=10.0,
                num_prompts=1,
                request_rate=rate,
                burstiness=rate and 1.0,
            )
    return folder


def call(*arguments):
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)])


def test_a_regression_is_told_by_the_exit_status_after_the_environment(tmp_path):
    base = result(tmp_path / "base", "tp4", [100.0, 101.0])
    new = result(tmp_path / "new", "tp4", [50.0, 50.5], host={"name": "elsewhere"})
    done = call(base, new, "--fail-below", "0.95")
    assert done.exit_code == commands.REGRESSED
    assert done.stdout.index("elsewhere") < done.stdout.index(
        "m.tp4.torch.bfloat16.short.c32: 0.50x"
    )
    assert "1 of 1 cells regressed: m.tp4.torch.bfloat16.short.c32" in done.stdout
    data = json.loads(call(base, new, "--fail-below", "0.95", "--json").stdout)
    assert data["regressions"] == ["m.tp4.torch.bfloat16.short.c32"]
    assert data["environment"] == [{"what": "host.name", "base": "-", "new": "elsewhere"}]


def test_without_a_regression_all_is_well(tmp_path):
    base, new = (result(tmp_path / name, "tp4", [100.0, 101.0]) for name in ("base", "new"))
    done = call(base, new, "--fail-below", "0.95")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "No cell regressed.")
    assert done.stdout.startswith("Same hardware")


def test_what_cannot_be_joined_is_refused_in_one_line(tmp_path):
    base, new = result(tmp_path / "base", "tp4", [1.0]), result(tmp_path / "new", "pp4", [1.0])
    for arguments, words in (
        ((base, new), "no cell in common"),
        ((base,), "BASE and NEW; 1 were given"),
    ):
        done = call(*arguments, "--fail-below", "0.9")
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
    twice = result(tmp_path / "both" / "one", "tp4", [1.0]).parent
    result(twice / "two", "tp4", [1.0])
    assert "the same cell in one and two" in call(twice, base, "--fail-below", "0.9").stderr


def test_two_results_whose_requests_arrive_otherwise_are_refused_with_the_reason(tmp_path):
    base, new = (
        result(tmp_path / "base", "tp4", [1.0]),
        result(tmp_path / "new", "tp4", [0.1], rate=8.0),
    )
    done = call(base, new, "--fail-below", "0.9")
    assert done.exit_code == 2
    assert (
        "one is a closed loop, the other an open loop at 8 requests/s; give two results of the "
        "same arrivals" in done.stderr
    )


def test_every_experiment_of_a_folder_is_held_against_its_counterpart(tmp_path):
    """The first of each root is the same on both sides; what differs is in the second, in a
    manifest of its own."""
    for root, driver, seed in (("base", "580", 0), ("new", "590", 1)):
        result(tmp_path / root / "a", "tp4", [100.0])
        result(
            tmp_path / root / "b",
            "tp4",
            [100.0],
            rate=8.0,
            driver_version=driver,
            experiment={"seed": seed},
        )
    data = json.loads(
        call(tmp_path / "base", tmp_path / "new", "--fail-below", "0.9", "--json").stdout
    )
    assert data["environment"] == [
        {"what": "work.seed", "base": "0", "new": "1"},
        {"what": "driver_version", "base": "580", "new": "590"},
    ]
    assert {cell["request_rate"]: cell["verdict"] for cell in data["cells"]} == {
        None: "ok",
        8.0: "ok",
    }


def test_what_a_regression_does_not_know_is_refused_beside_it(tmp_path):
    base = result(tmp_path / "base", "tp4", [1.0])
    for flags in (
        ("--objective", "latency"),
        ("--goodput", "ttft:1"),
        ("--svg", tmp_path / "x.svg"),
    ):
        done = call(base, base, "--fail-below", "0.9", *flags)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"leave out {flags[0]}" in done.stderr


def test_without_a_threshold_folders_are_compared_side_by_side(tmp_path):
    base, new = (
        result(tmp_path / "base", "tp4", [1.0], (1, 8)),
        result(tmp_path / "new", "pp4", [2.0]),
    )
    data = json.loads(call(base, new, "--json").stdout)
    assert set(data) >= {"comparison", "verdicts", "curves", "ablations"}
    assert [row["strategy"] for row in data["comparison"]] == ["tp4", "tp4", "pp4"]
    assert [curve["max_concurrency"] for curve in data["curves"]] == [[1, 8]]


def test_verdicts_and_curves_are_printed_under_the_tables(tmp_path):
    folder = result(tmp_path / "one", "tp4", [3.0], (1, 8, 32))
    result(folder, "pp4", [1.0], (1, 8, 32))
    said = " ".join(call(folder).stdout.split())
    assert "not shown: tp4 against pp4 at 8 concurrent, 3.00x with one start each" in said
    assert (
        "tp4: no knee; best point at 32, the highest measured; a user loses 0% of their speed "
        "from 1 to 32" in said
    )
    assert "96 · 100.0" in said
    assert "3.00x" not in call(folder, "--objective", "latency").stdout
    assert "time per token" in call(folder, "--objective", "latency").stdout
    assert "no metric 'itl'" in call(folder, "--goodput", "ttft:1", "itl:2").stderr


def test_the_objectives_offered_are_those_there_are():
    assert cli.OBJECTIVES == OBJECTIVES
