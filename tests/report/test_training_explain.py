"""What `explain --workload train` says, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import main

LLAMA = ["--workload", "train", "--model", "llama-8b", "--seq-len", "4096"]
STEP = ["--global-batch-size", "16"]


def explained(*arguments: str) -> str:
    said = CliRunner().invoke(main, ["explain", *arguments])
    assert said.exit_code == 0, said.output
    return " ".join(said.output.split())


def data(*arguments: str) -> dict[str, Any]:
    said = CliRunner().invoke(main, ["explain", *arguments, "--json"])
    assert said.exit_code == 0, said.output
    (found,) = json.loads(said.output)
    return dict(found)


def refused(*arguments: str) -> str:
    said = CliRunner().invoke(main, ["explain", *arguments])
    assert said.exit_code != 0
    assert len(said.output.strip().splitlines()) <= 4, said.output
    return " ".join(said.output.split())


def test_the_memory_is_split_by_what_it_is_for() -> None:
    said = explained("dp2zero1", *LLAMA, *STEP, "--memory", "141GiB")
    assert "llama-8b trained under dp2zero1 in bf16: 2 ranks, 2 replicas, on the engine dee" in said
    assert "weights gradients optimizer activations buffers all" in said
    assert "0 0 32 16.1 GB 16.1 GB 48.2 GB 33.8 GB 1.0 GB 115.1 GB" in said
    assert "It fits: the fullest rank takes 115.1 GB of 151.4 GB, of which 3.2 GB are in" in said


def test_what_does_not_fit_is_said() -> None:
    said = explained("dp2", *LLAMA, *STEP, "--memory", "80GiB")
    assert "It does not fit: the fullest rank takes 161.2 GB of 85.9 GB" in said
    assert "What fits: unknown" in explained("dp2", *LLAMA, *STEP)


def test_compiled_layers_are_said_and_keep_less() -> None:
    step = [*LLAMA, *STEP, "--micro-batch-size", "2", "--memory", "120GB"]
    said = explained("fsdp2", *step, "--fusion", "on")
    assert "llama-8b trained under fsdp2 in bf16, layers compiled: 2 ranks" in said
    assert "It fits: the fullest rank takes 107.4 GB of 120.0 GB" in said
    assert "It does not fit: the fullest rank takes 131.9 GB" in explained("fsdp2", *step)
    assert "It does not fit" in explained("fsdp2", *step, "--fusion", "off")
    both = explained("fsdp2", "tp2", *step, "--fusion", "on")
    assert "llama-8b trained in bf16, layers compiled; an optimizer step of 16" in both


def test_the_bubble_and_what_a_step_sends_are_said() -> None:
    said = explained("tp2pp2", *LLAMA, *STEP)
    assert "16 sequences of 4096 tokens, 16 x 1 a replica; 48.2 GFLOP a token" in said
    assert "Schedule 1f1b: a rank of the pipeline waits 5.9% of a step." in said
    for operation in ("all_gather tp", "reduce_scatter tp", "send pp", "recv pp"):
        assert operation in said
    assert "all_reduce dp in buckets" in explained("dp2", *LLAMA, *STEP)
    assert "An optimizer step needs no collective." in explained("tp1", *LLAMA, *STEP)


def test_a_pipeline_of_few_micro_batches_is_warned_of() -> None:
    said = explained("pp4", *LLAMA, "--global-batch-size", "2", "--schedule", "gpipe")
    assert "Note: 2 micro-batches are fewer than the 4 ranks of the pipeline: 60% of a" in said


def test_it_is_data_too() -> None:
    found = data("fsdp2", *LLAMA, *STEP, "--activation-checkpointing", "full")
    assert found["layout"] == "fsdp2"
    assert found["load"]["activation_checkpointing"] == "full"
    first = found["ranks"][0]
    parts = ("weights", "gradients", "optimizer", "activations", "buffers")
    assert first["total_bytes"] == sum(first["memory"][part] for part in parts)
    assert found["fits"] is None


def test_accumulation_says_the_micro_batch_by_its_number() -> None:
    steps = ["--gradient-accumulation-steps", "4"]
    assert "4 x 2 a replica" in explained("dp2", *LLAMA, *STEP, *steps)


def test_many_ranks_repeat_the_pattern() -> None:
    assert "and 48 more ranks" in explained("fsdp64", *LLAMA, "--global-batch-size", "64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fsdp4"], "fsdp4 only trains; to generate, use dp4, or dp4zero3"),
        (["tp16", *LLAMA], "tp=16 copies the 8 KV heads of llama-8b over ranks, which only gen"),
        (["dp4", *LLAMA, "--global-batch-size", "6"], "does not divide over 4 replicas"),
        (["pp4", *LLAMA, "--global-batch-size", "2"], "fewer than the 4 stages"),
        (["dp2", *LLAMA, "--batch", "2"], "--batch, --chunked-prefill-size and --gpus-per-node"),
        (["dp2", *LLAMA, "--dtype", "float16"], "train is asked for; give precision instead, or"),
        (["dp2", "--seq-len", "64"], "seq_len is about the workload train"),
        (["dp2", *LLAMA[:4], "--seq-len", "200000"], "longer than llama-8b knows positions: 131"),
        (["tp4", *LLAMA[:4], "--seq-len", "66"], "do not divide over tp=4; use --seq-len 68"),
        (["tp2", *LLAMA, "--offload", "optimizer+params"], "use --offload optimizer"),
        (["dp2", *LLAMA, "--offload", "optimizer+params"], "use fsdpN, or --offload optimizer"),
        (
            ["dp2", *LLAMA, "--schedule", "gpipe"],
            "gpipe is of a pipeline, and none of the layouts dp2",
        ),
        (["tp2", *LLAMA, "--precision", "fp8"], "the engine torch cannot train tp2: it has no FP8"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_line(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_a_schedule_is_of_the_layouts_that_have_a_pipeline() -> None:
    assert "pp2" in explained("dp2", "pp2", *LLAMA, *STEP, "--schedule", "gpipe")


def test_what_is_kept_in_main_memory_is_said_beside_what_a_gpu_takes() -> None:
    ranks = [
        data("fsdp2", *LLAMA, *STEP, "--offload", where)["ranks"][0]["memory"]
        for where in ("none", "optimizer", "optimizer+params")
    ]
    here, optimizer, everything = ranks
    assert (optimizer["optimizer"], optimizer["host"]["optimizer"]) == (0, here["optimizer"])
    assert optimizer["gradients"] == here["gradients"]
    assert (everything["weights"], everything["gradients"]) == (0, 0)
    assert everything["host"]["weights"] >= here["weights"]
    assert everything["host"]["gradients"] >= here["gradients"]


def test_main_memory_is_split_too_and_is_that_of_all_ranks_with_their_processes() -> None:
    offloads = ["--offload", "optimizer", "--memory", "141GB"]
    said = explained("dp2zero3", *LLAMA, *STEP, *offloads)
    (memory, _) = [
        one["memory"]["host"] for one in data("dp2zero3", *LLAMA, *STEP, *offloads)["ranks"]
    ]
    together = 2 * (sum(memory.values()) + 3 * 2**30)
    assert f"In main memory, all ranks take {together / 1e9:.1f} GB: each up to" in said
    assert f"{memory['gradients'] / 1e9:.1f} GB of gradients, 48.2 GB of optimizer" in said
    assert f"needs {together / 0.95e9:.1f} GB, of which 95% may be used" in said
    assert "In main memory" not in explained("dp2zero3", *LLAMA, *STEP)


def test_each_precision_has_its_memory() -> None:
    totals = {
        kind: data("fsdp2", *LLAMA, *STEP, "--precision", kind)["ranks"][0]["memory"]
        for kind in ("fp32", "bf16", "fp16")
    }
    assert totals["bf16"] == totals["fp16"]
    assert totals["fp32"]["weights"] == 2 * totals["bf16"]["weights"]


def test_layouts_that_train_stand_side_by_side_in_one_table() -> None:
    step = ["--global-batch-size", "2", "--memory", "141GB"]
    said = explained("fsdp2", "pp4", "tp8", *LLAMA, *step, "--schedule", "gpipe")
    assert "of a rank fsdp2 pp4 tp8" in said
    assert "waits in the pipeline 0.0% 60.0% 0.0%" in said
    assert "fits yes yes yes" in said
    assert said.count("reduce_scatter over fsdp") == 1
    assert "Note on pp4: 2 micro-batches are fewer than the 4 ranks" in said


def test_the_engine_that_trains_a_layout_is_said() -> None:
    assert "engine torch torch deepspeed" in explained("dp2", "tp2", "dp2zero1", *LLAMA, *STEP)
    assert "trained under dp2 in bf16: 2 ranks, 2 replicas, on the engine torch" in explained(
        "dp2", *LLAMA, *STEP
    )
    assert data("tp2", *LLAMA, *STEP)["engine"] == "torch"
