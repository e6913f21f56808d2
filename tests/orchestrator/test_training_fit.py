"""What cannot fit is not trained: the line that says what it would take."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import fitting
from orchestrator.plan.devices import Device
from orchestrator.plan.planning import plan_experiment
from strategies import Topology
from strategies.shapes import Device as Place

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _a_machine_of_64_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "main_memory", lambda: 64 * 10**9)


def planned(layout: str, device: Device, topology: Topology, **fields: Any) -> None:
    base = {"workload": "train", "model": "llama-8b", "load_format": "dummy", "seq_len": 4096}
    experiment = Experiment(**{**base, "strategy": (layout,), "device": device, **fields})
    plan_experiment(experiment, device, topology)


def gpus(count: int, gib: int) -> Topology:
    return Topology.uniform(count, gib * GIB, "H200")


def test_a_gpu_that_is_too_small_is_refused_with_the_split() -> None:
    message = (
        r"llama-8b under fsdp2 does not fit: a GPU would take 99.1 GB \(8.0 GB of weights, 8.0 GB "
        r"of gradients, 48.2 GB of optimizer state, 32.8 GB of activations, 2.1 GB of buffers\), "
        r"and has 85.9 GB; cut it over more GPUs .*, or --activation-checkpointing full$"
    )
    with pytest.raises(UserError, match=message):
        planned("fsdp2", "cuda", gpus(2, 80))
    planned("fsdp2", "cuda", gpus(2, 141))


def test_layers_are_counted_as_they_are_asked_for() -> None:
    step = {"micro_batch_size": 2, "global_batch_size": 8}
    planned("fsdp2", "cuda", gpus(2, 112), fusion="on", **step)
    for fusion in ("auto", "off"):
        with pytest.raises(UserError, match=r"a GPU would take 131.9 GB .* 65.5 GB of activations"):
            planned("fsdp2", "cuda", gpus(2, 112), fusion=fusion, **step)


def test_one_micro_batch_needs_no_room_for_gradients_beside_activations() -> None:
    """Of a 3B on 56 GiB, two thirds of a GB more than a step of one micro-batch takes."""
    step = {"model": "llama-3b", "activation_checkpointing": "full", "global_batch_size": 4}
    planned("tp1", "cuda", gpus(1, 56), fusion="on", micro_batch_size=4, **step)
    with pytest.raises(UserError, match=r"a GPU would take 57.2 GB .*6.4 GB of gradients"):
        planned("tp1", "cuda", gpus(1, 56), fusion="on", micro_batch_size=2, **step)


def test_deepspeed_keeps_gradients_of_one_micro_batch() -> None:
    pytest.importorskip("deepspeed")
    step = {"model": "llama-3b", "seq_len": 8192}
    planned("tp1", "cuda", gpus(1, 85), global_batch_size=1, **step)
    with pytest.raises(UserError, match=r"6.4 GB of gradients"):
        planned("tp1", "cuda", gpus(1, 85), global_batch_size=1, engine=("deepspeed",), **step)


def test_what_is_asked_already_is_not_advised() -> None:
    with pytest.raises(UserError, match=r"zero\), or give a smaller micro-batch$"):
        planned("dp2", "cuda", gpus(2, 80), micro_batch_size=2, activation_checkpointing="full")


def test_the_ranks_of_a_cpu_share_its_memory() -> None:
    message = (
        r"its 2 ranks would take 265.4 GB of main memory \(each up to 32.1 GB of weights, .*\), "
        "and this machine has 64.0 GB; use a smaller model"
    )
    with pytest.raises(UserError, match=message):
        planned("dp2", "cpu", Topology.uniform(2), seq_len=64)


def test_what_is_offloaded_must_fit_into_the_main_memory_of_one_machine() -> None:
    """Two ranks of 32 layers, 16 sequences of 4096 tokens with 4096 elements of two bytes."""
    fields = {"activation_checkpointing": "cpu-offload", "micro_batch_size": 32, "seq_len": 8192}
    taken = 2 * 32 * 32 * 8192 * 4096 * 2
    assert taken > 64 * 10**9
    with pytest.raises(UserError, match=r"would take 143.9 GB of main memory \(each up to 68.7 "):
        planned("fsdp2", "cuda", gpus(2, 2000), global_batch_size=64, **fields)
    apart = Topology(tuple(Place(f"node{i}", 0, 2000 * GIB, "H200") for i in range(2)))
    planned("fsdp2", "cuda", apart, global_batch_size=64, **fields)


LARGE = {"model": "qwen2.5-14b", "global_batch_size": 8, "activation_checkpointing": "full"}


@pytest.mark.parametrize(
    ("layout", "engine", "gigabytes"),
    [("dp2zero3", "deepspeed", 261), ("dp2zero2", "deepspeed", 321), ("fsdp2", "torch", 199)],
)
def test_what_an_optimizer_takes_in_main_memory_is_refused_with_its_split(
    monkeypatch: pytest.MonkeyPatch, layout: str, engine: str, gigabytes: int
) -> None:
    """Of a machine, 95 in 100 bytes may be used. A 14B fits under ZeRO-3 into 270 GB."""
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    asked = {**LARGE, "engine": (engine,), "offload": "optimizer"}
    monkeypatch.setattr(fitting, "main_memory", lambda: (gigabytes + 1) * 10**9)
    planned(layout, "cuda", gpus(2, 141), **asked)
    monkeypatch.setattr(fitting, "main_memory", lambda: (gigabytes - 1) * 10**9)
    with pytest.raises(UserError, match=r"88.6 GB of optimizer state.* and 3.2 GB of its proc"):
        planned(layout, "cuda", gpus(2, 141), **asked)


def test_an_engine_that_keeps_fewer_gradients_in_main_memory_is_advised() -> None:
    pytest.importorskip("deepspeed")
    asked = {**LARGE, "engine": ("deepspeed",), "offload": "optimizer"}
    message = r"29.5 GB of gradients.*of this machine's 64.0 GB, 60.8 GB may be used;.*engine torch"
    with pytest.raises(UserError, match=message):
        planned("dp2zero3", "cuda", gpus(2, 141), **asked)
