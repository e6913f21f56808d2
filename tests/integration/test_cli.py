"""The command line: what it prints, and that every bad input is answered with one line before
anything is reserved."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner, Result
from fakes import shapes, write_checkpoint, write_config, write_safetensors
from rich.console import Console
from summaries import measured, write_run
from tables import make

from orchestrator import cli
from orchestrator.analysis.comparing.metrics import OBJECTIVES
from orchestrator.cluster import hardware
from orchestrator.cluster.hardware import Gpu
from orchestrator.commands import SOME_FAILED
from orchestrator.experiment import TECHNIQUES, Cell, Deployment, Experiment, Run, Scenario
from orchestrator.experiment.techniques import IN_TRAINING
from orchestrator.plan import fitting
from orchestrator.report.terminal import RunProgress
from orchestrator.store.identity import identity_of
from orchestrator.store.store import Store
from workers.records import COMPUTE, SPANS

HEAVY = ("torch", "ray", "pyarrow", "transformers", "pydantic", "numpy", "rich")


@pytest.fixture(autouse=True)
def nothing_is_reserved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU and little memory here, whatever the machine; and no test of this file may start
    Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(fitting, "main_memory", lambda: 16 * 10**9)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(*arguments: Any, words: tuple[str, ...]) -> None:
    """One line on stderr with all of `words`, status 2, nothing on stdout."""
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert not isinstance(done.exception, (AssertionError, TypeError)), done.exception
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom orchestrator.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
        "pass\n"
    )
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "submit" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_field_of_an_experiment_is_an_option() -> None:
    submit, ablate = (cli.main.commands[name] for name in ("submit", "ablate"))
    asked = {*Experiment.model_fields, "config", "as_json"}
    asked |= {"dry_run", "no_wait", "force", "show_all"}
    assert {option.name for option in ablate.params} == asked
    machines = {"gpu", "gpus", "gpus_per_node", "network", "gpu_hour_cost"}
    machines |= {"failure_rate", "recovery", "straggler"}
    assert {option.name for option in submit.params} == asked - {"technique"} | {"trace"} | machines
    assert all(isinstance(option, click.Option) and option.help for option in ablate.params)


def test_the_help_of_ablate_names_every_technique() -> None:
    (option,) = (one for one in cli.main.commands["ablate"].params if one.name == "technique")
    serving, training = str(option.help).partition(".")[0].split("; train: ")
    assert serving.split(", ") == list(TECHNIQUES)
    assert training.split(", ") == list(IN_TRAINING)


# -- what is printed


def test_strategies_lists_layouts_engines_and_formats_of_datasets() -> None:
    done = call("strategies")
    assert done.exit_code == 0
    layouts = ("tp", "pp", "dp", "zero", "3d = tp2pp2dp1")
    for word in (*layouts, "torch", "transformers", "deepspeed", "sharegpt", "mooncake"):
        assert word in done.stdout


def test_explain_says_where_everything_is_and_what_is_sent() -> None:
    done = call("explain", "tp2pp2", "--model", "llama-70b", "--memory", "141GB", "--batch", "32")
    assert done.exit_code == 0
    for word in (
        "40-79",
        "32-63",
        "14336-28671",
        "35.3 GB",
        "81.9 kB",
        "short (384 tokens)",
        "all_reduce",
        "524.3 kB",
        "send",
    ):
        assert word in done.stdout


def test_explain_zero_says_that_parameters_are_gathered() -> None:
    assert (
        "105.8 GB of parameters come from other replicas"
        in call("explain", "dp4zero3", "--model", "llama-70b").stdout
    )


def test_explain_without_memory_says_what_it_needs() -> None:
    assert "--memory 141GB" in call("explain", "tp2").stdout


def test_explain_many_ranks_shows_the_first() -> None:
    assert "and 48 more ranks" in call("explain", "tp8dp8").stdout


def test_explain_as_json() -> None:
    (one,) = json.loads(call("explain", "3d", "--json", "--memory", "8GiB").stdout)
    assert (one["layout"], one["budget"]["available"], len(one["ranks"])) == ("tp2pp2", 8 << 30, 4)


def test_dry_run_prints_cells_and_placements_and_takes_nothing(tmp_path: Path) -> None:
    done = call(
        "submit",
        "--strategy",
        "tp4,3d",
        "--strategy",
        "dp4",
        "--max-concurrency",
        "1,8",
        "--dry-run",
    )
    assert done.exit_code == 0, done.output
    for word in (
        "tiny.tp4.torch.float32",
        "tiny.tp2pp2.torch.float32",
        "tiny.dp4.torch.float32",
        "fits",
        "2048",
    ):
        assert word in done.stdout
    assert "3 of 4 replicas have nothing to do" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_ablated_cell_is_told_apart() -> None:
    done = call("submit", "--strategy", "tp2,pp2", "--ablate", "comm", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "tp2 without comm" in done.stdout
    assert (
        "pp2: --ablate comm would change nothing (torch, cpu); it is not run without" in done.stderr
    )
    rows = [line for line in done.stdout.splitlines() if "torch" in line and "short" in line]
    assert len(rows) == 3


def test_a_finished_run_is_told_with_what_was_left_out() -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=160)
    cell = {"strategy": "tp2", "ablation": "comm", "engine": "torch", "scenario": "short"}
    run = measured(**cell, max_concurrency=8, run=0, status="failed", reason="gone")
    RunProgress(console).finished(run)
    assert "tp2 without comm torch short c8 start 1 run 1: failed: gone" in printed.getvalue()


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text(
        "strategy: [tp2, pp2]\nmax_concurrency: [3]\nscenario: short\nmetadata: {rack: 7}\n"
    )
    done = call("submit", "--config", config, "--strategy", "dp2", "--dry-run")
    assert "tiny.dp2.torch" in done.stdout
    assert "tp2" not in done.stdout
    assert "768" in done.stdout  # 3 prompts of 256 tokens


def test_a_terminal_that_lacks_a_character_gets_a_question_mark(tmp_path: Path) -> None:
    store = Store(tmp_path / "m-1")
    store.create()
    cell = Cell(Deployment("m", "tp2", "torch", "bfloat16"), Scenario("short", 256, 128), 8)
    lengths = {"input_len": None, "output_len": None}
    write_run(store, Run(cell, 0, 0), output_throughput=1.0, num_gpus=2, **lengths)
    command = [sys.executable, "-m", "orchestrator", "compare", str(store.folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"m ? short ? 8 concurrent" in done.stdout


def test_runs_of_nothing() -> None:
    assert "Nothing was run" in call("runs").stdout
    assert json.loads(call("runs", "--json").stdout) == []


def test_a_run_without_a_result_is_told_by_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "done" / "summary").mkdir(parents=True)
    (tmp_path / "done" / "manifest.json").write_text("{}")
    monkeypatch.setattr("orchestrator.run.driver.run_experiment", lambda *_: tmp_path / "done")
    done = call("submit")
    assert done.exit_code == SOME_FAILED
    assert str(tmp_path / "done") in done.stdout


def test_ctrl_c_is_told_by_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.plan.planning.plan_experiment", interrupt)
    assert call("submit").exit_code == 130


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--strategy tq4", ("no strategy 'tq'", "did you mean 'tp4'?")),
        ("--strategy 4", ("'4' is not a layout", "tp2pp2")),
        ("--strategy tp3", ("8 heads of tiny do not divide over tp=3", "use 1, 2, 4, 8")),
        ("--strategy pp5", ("pp=5", "use 1 to 4")),
        ("--strategy ,", ("strategy is empty; name at least one, as in tp4",)),
        ("--max-concurrency ,", ("max_concurrency is empty; name at least one, as in 8",)),
        ("--seed -5", ("seed: input should be greater than or equal to 0, found -5",)),
        ("--seed 99999999999999999999999", ("seed: input should be less than 2147483648",)),
        (
            "--max-concurrency 65537",
            ("max_concurrency: input should be less than or equal to 65536", "65537"),
        ),
        (
            "--num-prompts 1000001",
            ("num_prompts: input should be less than or equal to 1000000", "1000001"),
        ),
        (
            "--device cpu --address 127.0.0.1:1 --dry-run",
            ("no Ray cluster answers at 127.0.0.1:1",),
        ),
        ("--fabric none.arrow --dry-run", ("none.arrow holds no calibration that can be read",)),
        ("--model llama-70b --load-format dummy", ("does not fit", "282.2 GB")),
        ("--model llama-70b", ("--load-format dummy",)),
        ("--model lama-70b", ("did you mean 'llama-70b'?", "tiny")),
        ("--device cuda", ("there is none here",)),
        ("--device tpu", ("device: input should be 'auto', 'cuda' or 'cpu'", "'tpu'")),
        ("--engine torhc", ("no engine 'torhc'", "did you mean 'torch'?")),
        ("--strategy dp2zero3 --engine torch", ("dp2zero3 needs the engine deepspeed",)),
        (
            "--input-len 2000 --output-len 100",
            ("2000 prompt + 100 output tokens = 2100", "2048 positions"),
        ),
        ("--input-len 10", ("input_len and output_len go together",)),
        ("--scenario short --input-len 3 --output-len 3", ("say the lengths twice",)),
        ("--scenario shrot", ("no scenario 'shrot'", "short, long")),
        ("--max-concurrency 0", ("max_concurrency", "greater than 0")),
        ("--max-concurrency 1,many", ("max_concurrency", "valid integer, found 'many'")),
        ("--chunked-prefill-size on", ("should be a valid integer or 'off', found 'on'",)),
        ("--chunked-prefill-size 0", ("should be greater than 0 or 'off', found '0'",)),
        ("--num-runs 0", ("num_runs", "greater than 0")),
        ("--num-runs two", ("--num-runs", "'two'")),
        ("--num-starts 0", ("num_starts", "greater than 0")),
        ("--min-duration 8 --num-prompts 9", ("min_duration settles", "leave num_prompts out")),
        ("--temperature -1", ("temperature", "greater than or equal to 0")),
        ("--dtype fp8", ("dtype", "bfloat16", "'fp8'")),
        ("--load-format gguf", ("load_format", "'auto' or 'dummy'")),
        ("--metadata owner", ("'owner' is not KEY=VALUE",)),
        ("--metadata a=1 --metadata a=2", ("--metadata a is both 1 and 2; give one",)),
        ("--dataset-path x --dataset-columns prompt=a,prompt=b", ("prompt is both a and b",)),
        ("--engine-arg block_size", ("--engine-arg 'block_size' is not KEY=VALUE",)),
        ("--dataset-path none.jsonl", ("none.jsonl cannot be read",)),
        ("--config none.yaml", ("none.yaml cannot be read",)),
        ("--strateg tp2", ("--strateg", "--strategy")),
    ],
)
def test_a_bad_flag(arguments: str, words: tuple[str, ...]) -> None:
    refused("submit", *arguments.split(), words=words)


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: [Gpu(0, "A GPU", "GPU-0", 80 * 10**9, "580.1")])
    refused(
        "submit",
        "--strategy",
        "tp4",
        words=("tp4 needs 4 GPUs; 1 is here; use --device cpu or fewer",),
    )


def test_a_model_that_leaves_no_room_for_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        hardware,
        "gpus",
        lambda: [Gpu(i, "H200", f"GPU-{i}", 141 * 10**9, "580.1") for i in range(4)],
    )
    flags = ("--strategy", "dp4", "--model", "llama-70b", "--load-format", "dummy")
    refused(
        "submit",
        *flags,
        words=("llama-70b under dp4", "141.1 GB of weights", "no room for KV", "(tp, pp)"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("strategy: [tp2\nmodel: x: y\n", ("line 2", "not valid YAML")),
        ("a: b: c", ("line 1", "not valid YAML")),
        ("strategy: tp2\nmodel: tiny\nstrategy: pp2", ("line 3", "'strategy' is there twice")),
        ("\tstrategy: tp2", ("line 1", "not valid YAML")),
        ("strateggy: tp2", ("no field 'strateggy'", "did you mean 'strategy'?")),
        ("- tp2", ("expected fields and their values",)),
        ("max_concurrency: 0", ("max_concurrency", "greater than 0")),
        ("strategy: {tp: 2}", ("strategy",)),
        ("scenario: [[short]]", ("scenario",)),
        ("metadata: [a]", ("metadata",)),
        ("seed: !!python/object:os.system {}", ("line 1", "not valid YAML")),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text(text)
    refused("submit", "--config", config, words=("experiment.yaml", *words))


def test_a_checkpoint_with_a_missing_tensor(tmp_path: Path) -> None:
    tensors = shapes()
    del tensors["model.norm.weight"]
    write_safetensors(write_config(tmp_path / "m") / "model.safetensors", tensors)
    refused("submit", "--model", tmp_path / "m", words=("model.norm.weight is missing",))


def test_a_checkpoint_with_a_misshaped_tensor(tmp_path: Path) -> None:
    write_safetensors(
        write_config(tmp_path / "m") / "model.safetensors", {**shapes(), "model.norm.weight": (17,)}
    )
    refused("submit", "--model", tmp_path / "m", words=("model.norm.weight has shape [17]", "[16]"))


def test_a_checkpoint_that_is_cut_short(tmp_path: Path) -> None:
    write_safetensors(write_config(tmp_path / "m") / "model.safetensors", shapes(), cut=1)
    refused("submit", "--model", tmp_path / "m", words=("is cut short", "lm_head.weight"))


def test_an_architecture_that_is_not_run(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", architectures=["GPT2LMHeadModel"])
    refused(
        "submit",
        "--model",
        folder,
        words=("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM"),
    )


def test_code_from_a_checkpoint(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", auto_map={"AutoModel": "x.Y"})
    refused("submit", "--model", folder, words=("auto_map", "never run here"))


def test_results_of_another_schema_version(tmp_path: Path) -> None:
    flags = (
        "--model",
        write_checkpoint(tmp_path / "m"),
        "--input-len",
        8,
        "--output-len",
        4,
        "--result-dir",
        tmp_path / "r",
    )
    experiment = Experiment(model=str(tmp_path / "m"), input_len=8, output_len=4)
    folder = tmp_path / "r" / f"m-{identity_of(experiment)}"
    (folder / "summary").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"schema_version": 99}')
    refused("submit", *flags, words=(str(folder), "version 99"))
    refused("compare", folder, words=(str(folder), "version 99"))
    refused("export", folder, words=(str(folder), "version 99"))


def test_an_address_that_does_not_answer() -> None:
    started = time.monotonic()
    refused("submit", "--address", "127.0.0.1:1", words=("no Ray cluster answers at 127.0.0.1:1",))
    refused("submit", "--address", "nonsense", words=("'nonsense' is no Ray address", "host:port"))
    assert time.monotonic() - started < 30  # Ray alone would wait two minutes


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    refused(
        "submit",
        "--device",
        "cpu",
        "--address",
        "127.0.0.1:1",
        "--result-dir",
        tmp_path / "r",
        words=("127.0.0.1:1",),
    )
    assert not list(tmp_path.iterdir())
    for table in ("summary", "requests"):
        (tmp_path / "r" / "empty" / table).mkdir(parents=True)
    for command in ("compare", "runs", "report", "trace", "export"):
        refused(command, tmp_path / "r", words=("there are no results in",))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "m-1")
    store.create()
    cell = Cell(Deployment("m", "tp2", "torch", "bfloat16"), Scenario("short", 256, 128), 8)
    write_run(store, Run(cell, 0, 0), output_throughput=1.0)
    refused(
        "compare",
        store.folder,
        "--svg",
        tmp_path / "none" / "x.svg",
        words=("x.svg", "No such file", "give another --svg"),
    )
    refused(
        "export",
        store.folder,
        "--out",
        "/dev/null",
        words=("cannot be written to /dev/null", "give another --out"),
    )
    refused(
        "report",
        store.folder,
        "--out",
        tmp_path / "none" / "x.html",
        words=("x.html", "No such file"),
    )
    span = {
        "rank": 0,
        "phase": "decode",
        "step": 0,
        "kind": COMPUTE,
        "axis": None,
        "bytes": 8,
        "start_us": 0.0,
        "end_us": 5.0,
    }
    store.write_observed(cell, 0, {"spans": make(SPANS, [span])})
    (store.folder / "traces").write_text("in the way")
    refused("trace", store.folder, words=("traces cannot be written to", "File exists"))


def test_other_commands_refuse_in_one_line_too(tmp_path: Path) -> None:
    refused("explain", "tp2", "--memory", "141", words=("'141'", "write a unit, as in 141GB"))
    refused("explain", "tp2", "--memory", "much", words=("'much' is not an amount of memory",))
    refused("explain", "tp2", "--batch", "0", words=("--batch",))
    refused("explain", words=("LAYOUT",))
    refused("compare", tmp_path / "none", words=("there are no results in",))
    refused("export", tmp_path / "none", words=("there are no results in",))
    refused("sumbit", words=("No such command 'sumbit'",))


# -- what the command line repeats, so that it starts without what declares it


def choices(command: str, name: str) -> tuple[str, ...]:
    (option,) = (one for one in cli.main.commands[command].params if one.name == name)
    assert isinstance(option.type, click.Choice)
    return tuple(option.type.choices)


def test_the_objectives_offered_are_those_there_are() -> None:
    assert choices("compare", "objective") == OBJECTIVES


def asked_by(field: str) -> tuple[str, ...]:
    return get_args(Experiment.model_fields[field].annotation)


def test_choices_are_those_of_the_experiment() -> None:
    assert choices("calibrate", "device") == ("auto", "cuda", "cpu") == asked_by("device")
    assert ("auto", *choices("explain", "dtype")) == asked_by("dtype")


def test_python_runs_the_package() -> None:
    command = [sys.executable, "-m", "orchestrator", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("orchestrator, version ")
