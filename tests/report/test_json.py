"""`--json`: whatever prints a table prints the same as one JSON document, and nothing beside it on
stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from report_inputs import MadeUp, cell_of, write_results
from summaries import write_run

from orchestrator import cli
from orchestrator.cluster import hardware
from orchestrator.cluster.hardware import Gpu
from orchestrator.commands import SOME_FAILED
from orchestrator.experiment import Experiment, Run
from orchestrator.report.output import json_text
from orchestrator.store.folders import folder_of
from orchestrator.store.store import Store

# They print where they wrote.
PATHS_ONLY = {"import", "export", "pack", "report", "trace", "unpack"}


def parsed(text: str) -> Any:
    """One document of strict JSON, which knows neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """tp4 and pp4 at 1 and 8 concurrent, and tp4 at 8 without its collectives."""
    folder = write_results(
        tmp_path / "tiny-1", layouts=("tp4", "pp4"), concurrencies=(1, 8), served=3, samples=2
    )
    for ablation, step in (("none", 10.0), ("comm", 8.0)):
        run = Run(cell_of("tp4", 8, ablation), 0, 0)
        figures = {**MadeUp().figures(50.0, 8), "decode_ms_per_step": step}
        write_run(Store(folder), run, **figures)
    return folder


def test_what_is_no_number_is_null() -> None:
    assert parsed(json_text({"a": [float("nan"), (1.5, float("-inf"))], "b": None})) == {
        "a": [None, [1.5, None]],
        "b": None,
    }


def test_every_command_that_prints_a_table_has_it() -> None:
    have = {
        name
        for name, command in cli.main.commands.items()
        if any(option.name == "as_json" for option in command.params)
    }
    assert have == set(cli.main.commands) - PATHS_ONLY


@pytest.mark.parametrize(
    "arguments",
    [
        "strategies",
        "explain tp2 pp2 --model llama-70b --memory 141GB",
        "runs {root}",
        "compare {folder}",
        "compare {folder} --goodput ttft:100",
        "compare {folder} {folder}",
        "submit --strategy tp2,pp2 --dry-run",
        "submit --strategy tp4 --engine transformers --dry-run --device cpu",
        "doctor",
    ],
)
def test_stdout_is_one_document(
    folder: Path, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr("orchestrator.node.facts.gather", lambda _: SimpleNamespace(gpus=()))
    monkeypatch.setattr("orchestrator.node.doctor.CHECKS", ())
    done = call(*arguments.format(folder=folder, root=folder.parent).split(), "--json")
    if "transformers" in arguments:  # refused: one line on stderr, and nothing to parse
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    else:
        assert done.exit_code == 0, done.output
        assert parsed(done.stdout) is not None


def test_the_comparison_has_everything_that_is_printed(folder: Path) -> None:
    found = parsed(call("compare", folder, "--json").stdout)
    assert set(found) >= {"comparison", "verdicts", "curves", "ablations"}
    assert {(row["strategy"], row["max_concurrency"]) for row in found["comparison"]} == {
        (layout, concurrency) for layout in ("tp4", "pp4") for concurrency in (1, 8)
    }
    (effect,) = found["ablations"]
    assert (effect["experiment"], effect["strategy"], effect["ablation"]) == (
        "tiny-1",
        "tp4",
        "comm",
    )
    assert effect["saved_pct"] == pytest.approx(20.0)


def test_a_figure_that_went_wrong_is_null(folder: Path) -> None:
    for index in range(2):
        run = Run(cell_of("pp4", 1), 0, index)
        wrong = {"prefill_s": float("nan"), "duration": float("inf")}
        write_run(Store(folder), run, **{**MadeUp().figures(9.0, 1), **wrong})
    rows = parsed(call("compare", folder, "--json").stdout)["comparison"]
    wrong = next(row for row in rows if (row["strategy"], row["max_concurrency"]) == ("pp4", 1))
    assert (wrong["output_throughput"], wrong["prefill_s"], wrong["duration"]) == (9.0, None, None)


# -- submit


def test_a_dry_run_says_what_would_run_and_how_it_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        hardware,
        "gpus",
        lambda: [Gpu(i, "H200", f"GPU-{i}", 141 * 10**9, "580.1") for i in range(4)],
    )
    flags = (
        "--model",
        "llama-70b",
        "--load-format",
        "dummy",
        "--strategy",
        "tp4,3d",
        "--max-concurrency",
        "1,100",
    )
    done = call("submit", *flags, "--num-prompts", 8, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    tp4, mixed = parsed(done.stdout)["deployments"]
    assert (tp4["name"], tp4["layout"], tp4["engine"]) == (
        "llama-70b.tp4.torch.bfloat16",
        "tp4",
        "torch",
    )
    assert (mixed["layout"], mixed["dtype"], mixed["device"], mixed["num_ranks"]) == (
        "tp2pp2",
        "bfloat16",
        "cuda",
        4,
    )
    assert tp4["fits"] is True
    assert tp4["concurrent_requests"] == tp4["kv_tokens"] // 384 > 100
    assert tp4["max_len"] == 384
    assert tp4["placement"]["budget"]["kv_tokens"] == tp4["kv_tokens"]
    assert [rank["slices"]["heads"] for rank in tp4["placement"]["ranks"]] == [
        [0, 16],
        [16, 32],
        [32, 48],
        [48, 64],
    ]
    assert tp4["cells"] == [
        {
            "scenario": "short",
            "max_concurrency": c,
            "num_prompts": 8,
            "num_conversations": 8,
            "prompt_tokens": 2048,
            "output_tokens": 1024,
        }
        for c in (1, 100)
    ]


def test_a_dry_run_says_where_a_pilot_is_to_settle_the_requests_and_knows_those_that_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(folder_of(Experiment(min_duration=8.0, device="cpu")))
    store.folder.mkdir(parents=True)
    store.update_manifest(num_prompts={"short.c1": 30})
    flags = ("--min-duration", 8, "--device", "cpu", "--max-concurrency", "1,4", "--dry-run")
    (planned,) = parsed(call("submit", *flags, "--json").stdout)["deployments"]
    known, unknown = planned["cells"]
    assert (known["num_prompts"], known["prompt_tokens"]) == (30, 30 * 256)
    assert (unknown["num_prompts"], unknown["prompt_tokens"]) == (None, None)
    assert call("submit", *flags).stdout.count("by a pilot") == 3


def test_a_dry_run_on_cpus_makes_room_for_the_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(
        "submit",
        "--strategy",
        "dp4",
        "--device",
        "cpu",
        "--max-concurrency",
        1,
        "--dry-run",
        "--json",
    )
    (dp4,) = parsed(done.stdout)["deployments"]
    assert (dp4["fits"], dp4["kv_tokens"], dp4["concurrent_requests"]) == (True, None, None)
    assert "3 of 4 replicas have nothing to do" in done.stderr


def test_a_run_without_a_result_is_in_the_document_and_in_the_exit_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.run.driver.run_experiment", lambda *_: folder)
    done = call("submit", "--device", "cpu", "--json")
    assert done.exit_code == SOME_FAILED
    found = parsed(done.stdout)
    assert (found["results"], found["report"]) == (str(folder), str(folder / "report.html"))
    for line in (f"Results: {folder}", f"Report: {folder / 'report.html'}"):
        assert line in done.stderr


@pytest.mark.ray
def test_submit_leaves_stdout_to_the_document(tmp_path: Path) -> None:
    lengths = "--input-len 12 --output-len 6 --max-concurrency 2 --num-warmups 0 --save-detailed"
    flags = f"--strategy tp2,tp1 --ablate comm --model tiny --device cpu --trace {lengths} --json"
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "submit",
        *flags.split(),
        "--result-dir",
        str(tmp_path / "results"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr
    found = parsed(done.stdout)
    assert {(row["strategy"], row["status"], row["num_runs"]) for row in found["comparison"]} == {
        ("tp1", "completed", 1),
        ("tp2", "completed", 1),
    }
    assert {(row["strategy"], row["ablation"]) for row in found["ablations"]} == {("tp2", "comm")}
    assert Path(found["report"]).parent == Path(found["results"])
    assert Path(found["report"]).is_file()
    for words in (
        "tp2 without comm torch 12x6 c2 start 1 run 1: ",
        "Request 0 under tp1",
        f"Results: {found['results']}",
        "traces",
    ):
        assert words in done.stderr
    assert parsed(call("compare", found["results"], "--json").stdout).items() <= found.items()
