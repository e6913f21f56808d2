"""`orchestrator plan`, and `submit --dry-run` for GPUs that are not here."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.commands.predicting import predicted
from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.plan import fitting
from orchestrator.predict.interval import Estimate
from orchestrator.predict.parts import NAMES
from orchestrator.predict.plan import Machines, Runs
from orchestrator.report.output import console_of
from orchestrator.report.predicted.plan_table import estimated, render
from orchestrator.store.arrow_files import write_part
from workers.records import FABRIC

ASKED = ("--model", "llama-70b", "--gpu", "h200", "--gpus", "4")
FABRICS = Path(__file__).resolve().parents[2] / "docs" / "results"
QUICKLY = """
import sys, time
begun = time.perf_counter()
from orchestrator.cli import main
main(sys.argv[1:], standalone_mode=False)
heavy = {"torch", "ray", "transformers"} & set(sys.modules)
assert not heavy, heavy
print(time.perf_counter() - begun, file=sys.stderr)
"""


def run(*asked: str) -> Result:
    return CliRunner().invoke(cli.main, list(asked))


def plan(*asked: str) -> dict[str, Any]:
    done = run("plan", *asked, "--json")
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def rankings(*asked: str) -> list[dict[str, Any]]:
    return [ranking for one in plan(*asked)["plans"] for ranking in one["rankings"]]


def names(ranking: dict[str, Any]) -> list[str]:
    return [one["layout"] for one in ranking["layouts"]]


def test_a_plan_says_which_axes_go_between_nodes() -> None:
    asked = ("--model", "llama-70b", "--gpu", "h200", "--gpus", "16", "--strategy")
    layouts = "tp16,tp8pp2,tp8dp2,tp4pp4"
    (ranking,) = rankings(*asked, layouts)
    assert {one["layout"]: one["between_nodes"] for one in ranking["layouts"]} == {
        "tp16": ["tp"],
        "tp8pp2": ["pp"],
        "tp8dp2": ["dp"],
        "tp4pp4": ["pp"],
    }
    said = run("plan", *asked, "tp8pp2,tp4pp4").stdout
    assert re.search(r"Between nodes: pp of (tp8pp2, tp4pp4|tp4pp4, tp8pp2)\.", said)
    assert "Between nodes" not in run("plan", *ASKED).stdout


def test_a_plan_has_every_layout_of_the_gpus_or_why_not() -> None:
    found = rankings(*ASKED, "--max-concurrency", "1,32,100")
    assert [one["max_concurrency"] for one in found] == [1, 32, 100]
    for one in found:
        assert set(names(one)) == {"tp4", "pp4", "tp2pp2", "tp2dp2", "pp2dp2"}
        # Of 100 requests a replica of two has 50, whose kernels are those of few rows.
        assert names(one)[0] == ("tp4" if one["max_concurrency"] < 100 else "tp2dp2")
        (refused,) = one["refused"]
        assert (refused["layout"], refused["kind"]) == ("dp4", "impossible")
        assert "weights" in refused["reason"]


def test_each_layout_of_a_plan_has_its_figures_with_intervals() -> None:
    (ranking,) = rankings(*ASKED, "--strategy", "tp4", "--gpu-hour-cost", "3")
    (one,) = ranking["layouts"]
    for metric in (
        "output_throughput",
        "ttft_ms",
        "tpot_ms",
        "joules_per_output_token",
        "cost_per_million_tokens",
    ):
        assert one[metric]["low"] < one[metric]["value"] < one[metric]["high"]
    assert one["output_throughput"]["value"] < one["bound_output_throughput"]
    assert set(one["parts"]) == set(NAMES)
    assert set(one["memory"]) == {"weights", "kv", "activations", "reserve", "available"}
    assert any("H200" in why for why in one["outside"])


def test_a_layout_of_more_gpus_than_there_are_is_impossible() -> None:
    (found,) = rankings(*ASKED, "--strategy", "tp8,tp4")
    assert names(found) == ["tp4"]
    assert "needs 8 GPUs, of 4" in found["refused"][0]["reason"]


def test_two_names_of_a_layout_are_one_row_of_a_plan() -> None:
    (found,) = rankings(*ASKED, "--strategy", "tp4,tp4dp1,3d,pp2tp2,dp4,dp4tp1")
    assert names(found) == ["tp4", "tp2pp2"]
    assert [one["layout"] for one in found["refused"]] == ["dp4"]


def test_a_plan_is_a_table_for_people() -> None:
    done = run("plan", *ASKED, "--max-concurrency", "32", "--engine", "torch,vllm")
    assert done.exit_code == 0
    for word in ("32 concurrent, torch", "32 concurrent, vllm", "tokens/s", "TPOT", "dp4: imp"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--gpu", "h2000", "--gpus", "4"), "did you mean h200"),
        (("--gpu", "h200"), "--gpu and --gpus go together"),
        (("--gpus", "4"), "--gpu and --gpus go together"),
        ((), "give --gpu and --gpus"),
        (("--gpu", "h800", "--gpus", "4", "--engine", "deepspeed"), "no factors were fitted"),
        (("--gpu", "h20 pcie", "--gpus", "4"), "no data sheet of 'h20 pcie' is known"),
        (("--gpu", "h800 nvl", "--gpus", "4"), "no memory bandwidth of H800 NVL is known"),
        (("--gpu", "h200", "--gpus", "4", "--input-len", "9:99", "--output-len", "9"), "equal len"),
        (
            ("--gpu", "h200", "--gpus", "4", "--fabric", str(FABRICS / "2xh100")),
            "asked for is H200",
        ),
        (("--gpu", "h200", "--gpus", "4", "--fabric", "/none"), "no calibration"),
        ((*ASKED, "--gpu-hour-cost", "0"), "0.0 is not in the range 0<x"),
        ((*ASKED, "--gpu-hour-cost", "nan"), "nan is not a finite number"),
        ((*ASKED, "--network", "nan"), "nan is not a finite number"),
        ((*ASKED, "--network", "inf"), "inf is not in the range"),
        (("--gpu", "h200", "--gpus", "2", "--strategy", "tpx"), "'tpx' is not a layout"),
        ((*ASKED, "--strategy", "tp4,tq4"), "there is no strategy 'tq'; did you mean 'tp4'"),
        ((*ASKED, "--strategy", "tp4,tp2tp2"), "a strategy is named twice"),
        ((*ASKED, "--input-len", "131000", "--output-len", "100"), "has 131072 positions"),
        (
            (*ASKED, "--input-len", "1:131000", "--output-len", "100", "--request-rate", "1"),
            "has 131072 positions",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(asked: Sequence[str], says: str) -> None:
    done = run("plan", *asked)
    said = done.stderr + done.stdout
    assert done.exit_code != 0
    assert says in " ".join(said.split())
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_calibration_stands_for_the_gpus_it_was_made_of() -> None:
    mine = plan(*ASKED, "--fabric", str(FABRICS / "2xh200"))
    assert mine["sources"]["rates"] == "measured: 2xh200"
    assert mine["sources"]["link"] == "measured: 2xh200"


def test_where_a_calibration_has_no_collectives_they_are_those_of_the_data_sheet(
    tmp_path: Path,
) -> None:
    rows = FABRIC.rows(fabric.load(FABRICS / "2xh200"))
    write_part(tmp_path / fabric.FILE, FABRIC.make(r for r in rows if r.kind != "collective"))
    found = plan(*ASKED, "--fabric", str(tmp_path))
    assert found["sources"]["rates"] == f"measured: {tmp_path.name}"
    assert found["sources"]["link"].startswith("data sheet")


def test_nodes_beyond_one_are_joined_by_their_network() -> None:
    asked = ("--model", "llama-70b", "--gpu", "l40s", "--gpus", "16")
    (alone,) = rankings(*asked)
    unknown = [one for one in alone["refused"] if one["kind"] == "unknown"]
    assert unknown
    assert all("--network" in one["reason"] for one in unknown)
    (joined,) = rankings(*asked, "--network", "25")
    assert not [one for one in joined["refused"] if one["kind"] == "unknown"]
    assert len(joined["layouts"]) == len(alone["layouts"]) + len(unknown)


def test_a_dry_run_for_gpus_that_are_not_here_is_a_plan_with_its_runs() -> None:
    asked = ("--strategy", "tp4,pp4", "--load-format", "dummy", *ASKED, "--num-runs", "2")
    done = run("submit", "--dry-run", *asked, "--max-concurrency", "1,32", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["runs_of_a_cell"] == 2
    durations = [
        one["duration_s"] for ranking in found["plans"][0]["rankings"] for one in ranking["layouts"]
    ]
    assert len(durations) == 4
    assert found["duration_s"] == pytest.approx(2 * sum(durations))


def dry_run(*asked: str) -> Result:
    return run("submit", "--dry-run", "--load-format", "dummy", *ASKED, *asked)


def test_runs_of_a_least_duration_take_that_long_each() -> None:
    done = dry_run("--strategy", "tp4", "--min-duration", "60", "--num-starts", "5")
    assert "1 cell, 5 runs of each, at least 5 min beside" in done.stdout


def test_cells_without_communication_are_counted_where_a_layout_has_some() -> None:
    asked = ("--strategy", "tp4,pp4,tp2pp2", "--ablate", "comm")
    found = json.loads(dry_run(*asked, "--json").stdout)
    took = {one["layout"]: one["duration_s"] for one in found["plans"][0]["rankings"][0]["layouts"]}
    assert found["cells"] == 5
    twice = took["tp4"] + took["tp2pp2"]
    assert found["duration_s"] == pytest.approx(sum(took.values()) + twice)


def test_what_a_layout_does_is_told_by_its_axes_and_not_by_its_name() -> None:
    """A plug-in cuts on the axis tp, too, and has a key of its own."""
    asked = Experiment(model="llama-8b", scenario=("short",))
    found = predicted(asked, Machines("h200", 2), ("tp2", "pp2", "dp2")).predictions
    runs = Runs(1, 1, ablate=("comm", "p2p"))
    counted = {one.layout: runs.cells(replace(one, layout="mine2")) for one in found}
    assert counted == {"tp2": 3, "pp2": 2, "dp2": 1}


@pytest.mark.parametrize(
    "switch", [("--cuda-graphs", "off"), ("--batching", "static"), ("--fusion", "off")]
)
def test_an_engine_that_is_not_as_it_is_by_itself_is_not_predicted(switch: Sequence[str]) -> None:
    done = dry_run("--strategy", "tp4", *switch)
    assert done.exit_code != 0
    assert "as it is by itself; leave out its switches" in done.stderr


def test_a_dry_run_that_a_laptop_has_no_memory_for_points_at_a_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "main_memory", lambda: 16 * 10**9)
    asked = ("--model", "llama-70b", "--load-format", "dummy", "--device", "cpu")
    done = run("submit", "--dry-run", "--strategy", "tp4", *asked)
    assert done.exit_code != 0
    assert "`orchestrator plan --gpu h200 --gpus 4` predicts" in done.stderr


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [
        (8.0, 10.0, 12.5, "10 ±25%"),
        (27.2, 59.5, 130.2, "30 to 100"),
        (9.9, 99.0, 990.0, "10 to 1000"),
        (1.0, 57.0, 3249.0, "unknown"),
    ],
)
def test_an_interval_is_written_as_wide_as_it_is(
    low: float, value: float, high: float, text: str
) -> None:
    assert estimated(Estimate(value, low, high)) == text


def test_a_narrow_terminal_has_narrower_tables_and_no_cut_in_any() -> None:
    asked = Experiment(model="llama-70b", max_concurrency=(100,))
    found = predicted(asked, Machines("h200", 16, gpu_hour_cost=3.0), ())
    console = console_of(width=80, file=io.StringIO())
    render(found, console)
    text = console.file.getvalue()
    assert "\u2026" not in text
    tables = [line for line in text.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= 80
    for one in found.planned[0].rankings[0].predictions:
        assert f" {one.layout} " in text
        assert estimated(one.output_throughput) in text
    for heading in ("tokens/s", "TPOT ms", "weights", "KV"):
        assert f" {heading} " in text


@pytest.mark.parametrize(
    ("requests", "says"), [(1, "1 request at the start,"), (3, "3 requests at the start,")]
)
def test_a_trace_whose_requests_all_come_at_once_has_no_rate(
    requests: int, says: str, tmp_path: Path
) -> None:
    row = json.dumps({"timestamp": 0, "input_length": 100, "output_length": 10})
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join([row] * requests))
    asked = ("--model", "llama-8b", "--gpu", "h200", "--gpus", "2", "--dataset-path", str(path))
    assert says in run("plan", *asked).stdout


def test_time_in_which_a_replica_has_nothing_to_do_is_explained_where_there_is_some() -> None:
    asked = ("--model", "llama-8b", "--gpu", "h200", "--gpus", "2", "--max-concurrency")
    said = "outside: a replica has nothing to do."
    assert said in run("plan", *asked, "1").stdout
    assert said not in run("plan", *asked, "2").stdout


def test_of_gpus_whose_memory_is_not_known_it_says_that_nothing_need_fit() -> None:
    asked = ("--model", "llama-70b", "--gpus", "2", "--gpu")
    said = "How much memory H800 has is not known: whether a layout fits was not looked at."
    assert said in run("plan", *asked, "h800").stdout
    assert "is not known" not in run("plan", *asked, "h100").stdout


def test_no_figure_of_a_plan_needs_an_exponent() -> None:
    asked = ("--model", "llama-8b", "--gpu", "h200", "--gpus", "64", "--max-concurrency", "4096")
    asked += ("--strategy", "dp64,tp8dp8")  # the most tokens/s, the highest bound
    found = run("plan", *asked, "--request-rate", "1000").stdout
    assert "at 1000 requests/s" in found
    assert not re.findall(r"\de\+\d+", found + run("plan", *asked).stdout)


def test_one_token_of_output_has_no_time_for_each_further_one() -> None:
    asked = (*ASKED, "--input-len", "100", "--output-len", "1")
    (found,) = rankings(*asked)
    assert {one["tpot_ms"] for one in found["layouts"]} == {None}
    assert [one["pareto"] for one in found["layouts"]].count(True) == 1
    text = run("plan", *asked).stdout
    assert "no other layout has more tokens/s a GPU." in text
    done = run("recommend", "--slo", "tpot:50", *ASKED[:2], *asked[-4:])
    assert "--output-len 1 has none" in done.stderr


@pytest.mark.parametrize(
    "asked",
    [
        ("--gpu", "h200", "--gpus", "2", "--strategy", "tp4"),
        ("--gpu", "a100", "--gpus", "2", "--quantization", "fp8", "--model", "llama-8b"),
    ],
)
def test_where_nothing_is_predicted_only_the_reasons_are_printed(asked: Sequence[str]) -> None:
    done = run("plan", *asked)
    assert done.exit_code == 2
    first, *reasons = done.stdout.splitlines()
    assert first.endswith("nothing is predicted")
    assert reasons
    assert all(re.match(r"[a-z0-9, ]+: (impossible|unknown): ", line) for line in reasons)


TWO = ("--gpus", "2", "--model", "llama-8b", "--strategy", "tp2")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--gpu", "a100", "--quantization", "fp8"), "A100 has 8.0, and no FP8"),
        (("--gpu", "a100", "--kv-cache-dtype", "fp8"), "A100 has 8.0, and no FP8"),
        (("--gpu", "h200", "--quantization", "fp8", "--dtype", "float16"), "the dtype is float16"),
        (
            ("--gpu", "h200", "--engine", "vllm", "--precision-policy", "fp8-decode"),
            "the engine vllm cannot run it: it has one precision for both phases",
        ),
    ],
)
def test_fp8_that_a_run_would_refuse_is_not_predicted(asked: Sequence[str], why: str) -> None:
    done = run("plan", *TWO, *asked)
    assert done.exit_code == 2
    assert "tp2: impossible: " in done.stdout
    assert why in " ".join(done.stdout.split())


@pytest.mark.parametrize("switch", [("--products", "triton"), ("--pdl", "on")])
@pytest.mark.parametrize(("gpu", "engine"), [("a100", "torch"), ("h200", "vllm")])
def test_kernels_that_are_not_there_are_not_predicted(
    switch: tuple[str, str], gpu: str, engine: str
) -> None:
    asked = ("submit", "--dry-run", *TWO, "--load-format", "dummy", "--engine", engine)
    done = run(*asked, "--gpu", gpu, *switch)
    assert done.exit_code == 2
    said = f"error: the engine {engine} has no {' '.join(switch)} on {gpu.upper()}; leave it out"
    assert said in done.stderr
    assert run(*asked, "--gpu", "h200", *(switch if engine == "torch" else ())).exit_code == 0


def test_an_engine_that_is_not_installed_here_is_predicted_in_fp8() -> None:
    asked = ("--gpu", "h200", "--engine", "vllm", "--quantization", "fp8")
    assert run("plan", *TWO, *asked).exit_code == 0


def test_layouts_that_are_refused_alike_share_a_line() -> None:
    asked = ("--gpu", "h200", "--gpus", "1024", "--model", "llama-8b", "--max-concurrency", "8")
    text = " ".join(run("plan", *asked).stdout.split())
    assert text.count("is more stages than llama-8b has layers") == 1
    assert re.search(r"pp\d+\w* and \d+ more: impossible: pp=\d+ is more stages", text)


def test_the_sources_are_of_the_figures_that_are_known_and_used() -> None:
    inside = plan("--model", "llama-8b", "--gpu", "h800", "--gpus", "8")["sources"]
    assert set(inside) == {"rates", "link"}
    asked = ("--model", "llama-8b", "--gpu", "l40s", "--strategy", "tp8")
    assert "network" not in plan(*asked, "--gpus", "8")["sources"]
    assert plan(*asked, "--gpus", "16", "--network", "50")["sources"]["network"] == "as asked"


@pytest.mark.parametrize(
    "asked",
    [
        ("plan", "--gpus", "8"),
        ("recommend", "--slo", "tpot:50", "--gpus-max", "4"),
        ("matrix", "--gpus-max", "8"),
    ],
    ids=lambda asked: asked[0],
)
def test_a_network_that_no_layout_would_use_is_refused(asked: tuple[str, ...]) -> None:
    done = run(*asked, "--model", "llama-8b", "--gpu", "l40s", "--network", "50")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "network" in line
    assert "leave it out" in line


def test_a_device_that_no_prediction_is_made_of_is_refused() -> None:
    done = run("submit", "--dry-run", *ASKED, "--device", "cpu")
    assert done.exit_code == 2
    assert "--gpu is about GPUs, and the device cpu is asked for" in done.stderr


def test_every_sentence_below_a_ranking_has_its_full_stop() -> None:
    shown = run("submit", "--dry-run", *ASKED, "--strategy", "tp4,dp4").stdout.splitlines()
    below = shown[next(n for n, line in enumerate(shown) if line.startswith("Against")) + 1 :]
    assert any(line.startswith("tp4: tok/s = ") for line in below)
    assert any(line.startswith("dp4: impossible: ") for line in below)
    assert any("at least 1 s beside" in line or "at least 2 s beside" in line for line in below)
    assert [line for line in below if not line.endswith(".")] == []


def test_gpus_that_are_not_here_run_nothing() -> None:
    done = run("submit", *ASKED)
    assert done.exit_code != 0
    assert "--dry-run" in done.stderr


def test_a_plan_for_four_gpus_takes_two_seconds_and_imports_neither_torch_nor_ray() -> None:
    asked = [*ASKED, "--max-concurrency", "1,32,100"]
    done = subprocess.run(
        [sys.executable, "-c", QUICKLY, "plan", *asked], capture_output=True, text=True, check=True
    )
    assert "100 concurrent" in done.stdout
    assert float(done.stderr) < 2 * 3  # the machine may be busy with other tests


@pytest.mark.slow
def test_a_plan_for_4096_gpus_takes_less_than_a_minute() -> None:
    begun = time.perf_counter()
    asked = ("--model", "llama-70b", "--gpu", "h200", "--gpus", "4096")
    (found,) = rankings(*asked, "--max-concurrency", "1000")
    assert len(found["layouts"]) + len(found["refused"]) == 91  # 2^12 as a product of three
    assert time.perf_counter() - begun < 60


def test_a_plan_has_the_closed_form_of_each_layout_against_concurrency() -> None:
    (one,) = plan(*ASKED, "--max-concurrency", "32")["plans"]
    assert {each["layout"] for each in one["against_concurrency"]} >= {"tp4", "pp4"}
    for each in one["against_concurrency"]:
        fitted = each["fitted"]
        assert [point["concurrency"] for point in each["points"]] == [1, 2, 4, 8, 16, 32, 64, 100]
        assert fitted["error_pct"] < 7
        # what one more request in flight adds to a step is more than its KV takes to read
        assert 0 < fitted["tpot_each_ms"] < fitted["tpot_base_ms"] / 50


def test_a_curve_ends_where_kv_has_no_room() -> None:
    asked = ("--model", "llama-70b", "--gpu", "l40s", "--gpus", "4", "--strategy", "tp4")
    (one,) = plan(*asked, "--input-len", "3000", "--output-len", "500")["plans"]
    (curve,) = one["against_concurrency"]
    assert curve["full_at"] == 32
    assert curve["points"][-1]["concurrency"] == 16
    shown = run("plan", *asked, "--input-len", "3000", "--output-len", "500").stdout
    assert "KV has no room for 32" in " ".join(shown.split())
