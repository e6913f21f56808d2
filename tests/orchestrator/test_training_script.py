"""`benchmarks/training_layouts.py` asks for what the command line knows, and leaves out what is
refused or fails."""

from __future__ import annotations

import itertools
import sys
import time

import pytest
import training_layouts as script
from click.testing import CliRunner

from orchestrator.cli import main as cli
from orchestrator.experiment import IN_TRAINING
from orchestrator.plan.models import resolve
from strategies import Topology, TrainingLoad, plan_layout
from strategies.training import training_memory

ON_ONE = ("tp1", "zero2", "zero3")
H100 = 85_520_809_984  # bytes, as nvidia-smi says of one of 80 GB


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[tuple[str, ...]]:
    monkeypatch.setattr(sys, "argv", ["training_layouts.py", *words])
    return list(script.commands(script.parse()))


def test_every_call_is_one_that_the_command_line_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch)
    for name, *rest in calls:
        cli.commands[name].make_context(name, rest)
    layouts = {call[call.index("--strategy") + 1] for call in calls}
    assert layouts == {"fsdp2", "tp2", "pp2", "dp2", "dp2zero1", "dp2zero2", "dp2zero3"}
    assert {name for name, *_ in asked(monkeypatch, "--parts", "techniques")} == {"ablate"}


def test_one_gpu_has_every_technique_and_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "--gpus", "1")
    for name, *rest in calls:
        cli.commands[name].make_context(name, rest)
    given = [dict(itertools.pairwise(call)) for call in calls]
    assert {one["--strategy"] for one in given} == {"tp1", "zero2", "zero3"}
    words = [name for one in given for name in one.get("--technique", "").split(",") if name]
    assert len(set(words)) == len(words)
    assert {name.partition("=")[0] for name in words} == set(IN_TRAINING) - {"comm"}
    assert {"precision=fp16", "precision=fp8", "precision=fp8-fp16"} <= set(words)
    assert {one.get("--engine", "torch") for one in given} == {"torch", "deepspeed"}


def test_accumulation_on_one_gpu_has_more_and_fewer_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "--gpus", "1", "--global-batch-size", "4", "--model", "tiny")
    (call,) = (one for one in calls if any("accumulation" in word for word in one))
    # Without what is of GPUs and of compilers, and in sequences that a model of few positions has.
    words = [*call[1:], "--device", "cpu", "--seq-len", "64", "--fusion", "off", "--dry-run"]
    result = CliRunner().invoke(cli, ["ablate", *words])
    assert result.exit_code == 0, result.output
    assert "with-accumulation=1:" in result.output
    assert "with-accumulation=4:" in result.output
    assert "with-offload=optimizer:" in result.output


def test_a_part_that_one_gpu_cannot_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, "--gpus", "1", "--parts", "layouts", "comm")
    assert "--gpus 1 has no comm; it has techniques, layouts" in capsys.readouterr().err


def test_model_and_micro_batch_are_of_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "--model", "llama-3b", "--micro-batch-size", "1")
    for call in calls:
        assert call[call.index("--model") + 1] == "llama-3b"
        assert call[call.index("--micro-batch-size") + 1] == "1"


def test_a_3b_fits_on_gpus_of_80_gb_under_every_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--parts", "layouts", "--model", "llama-3b", "--micro-batch-size", "1")
    assert all(fits(call) for call in asked(monkeypatch, *words))


def test_all_that_one_gpu_of_80_gb_is_asked_for_fits_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(fits(call) for call in asked(monkeypatch, "--gpus", "1"))


def test_an_8b_fits_on_gpus_of_80_gb_where_layers_are_recomputed_and_all_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = asked(monkeypatch, "--parts", "recomputed", "--micro-batch-size", "1")
    fitting = {call[call.index("--strategy") + 1] for call in calls if fits(call)}
    assert fitting == {"fsdp2", "tp2", "pp2", "dp2zero3"}


def test_an_8b_fits_on_gpus_of_80_gb_with_nothing_recomputed_where_layers_are_cut_over_tp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = asked(monkeypatch, "--parts", "layouts", "--micro-batch-size", "1")
    assert {call[call.index("--strategy") + 1] for call in calls if fits(call)} == {"tp2"}


def fits(call: tuple[str, ...]) -> bool:
    """Whether a layout fits on GPUs of as much memory as an H100 says to have."""
    given = dict(itertools.pairwise(call))
    load = TrainingLoad(
        seq_len=int(given["--seq-len"]),
        global_batch_size=int(given["--global-batch-size"]),
        micro_batch_size=int(given["--micro-batch-size"]),
        precision="bf16",
        activation_checkpointing=given.get("--activation-checkpointing", "off"),  # type: ignore[arg-type]
        compiles=given.get("--fusion") == "on",
        offload=given.get("--offload", "none"),  # type: ignore[arg-type]
    )
    model = resolve(given["--model"], "dummy").shape
    gpus = Topology.uniform(1 if given["--strategy"] in ON_ONE else 2, H100)
    layout = plan_layout(given["--strategy"], model, load.load, gpus)
    return all(rank.fits(H100) for rank in training_memory(layout.placement, model, load))


@pytest.mark.parametrize(
    ("status", "goes_on", "failed"),
    [(0, True, False), (2, True, False), (1, True, True), (70, True, True), (130, False, False)],
)
def test_a_layout_that_is_refused_or_fails_is_left_out_and_a_signal_ends_it(
    status: int, goes_on: bool, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-c", f"raise SystemExit({status})")
    monkeypatch.setattr("all_layouts.ORCHESTRATOR", (sys.executable,))
    calls = script.Calls()
    if goes_on:
        assert calls.done(command, time.monotonic() + 60)
        assert calls.failed is failed
        return
    with pytest.raises(SystemExit, match=f"status {status}"):
        calls.done(command, time.monotonic() + 60)


def test_after_the_time_the_rest_is_left() -> None:
    assert not script.Calls().done(("-c", "pass"), time.monotonic() - 1)
