"""What an optimizer step communicates, against arithmetic by hand and against what torch counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from counted import counted
from layouts_inputs import shape

from strategies import ModelShape, Placement, Topology, TrainingLoad, plan_layout
from strategies.shapes import Checkpointing, Schedule
from strategies.training import training_traffic

MODEL = shape(family="llama", qkv_bias=False, output_bias=False, qk_norm=False)
LOAD = TrainingLoad(seq_len=16, global_batch_size=8, precision="fp32")
PARAMETERS = MODEL.num_parameters
HIDDEN = 4 * 16 * 32  # bytes of a micro-batch of one sequence between two layers


def placed(name: str, load: TrainingLoad = LOAD, model: ModelShape = MODEL) -> Placement:
    return plan_layout(name, model, load.load, Topology.uniform(16)).placement


def traffic(
    name: str, rank: int = 0, load: TrainingLoad = LOAD, model: ModelShape = MODEL
) -> dict[tuple[str, str], tuple[int | None, int]]:
    """(operation, axis) -> (calls, bytes)."""
    found = training_traffic(placed(name, load, model), model, load, rank)
    return {(one.op, one.axis): (one.calls, one.bytes) for one in found}


def volume(name: str, load: TrainingLoad = LOAD) -> dict[str, int]:
    """Operation -> bytes."""
    return {op: size for (op, _), (_, size) in traffic(name, load=load).items()}


@pytest.mark.parametrize("mode", ["off", "full"])
@pytest.mark.parametrize("name", ["fsdp2", "fsdp3", "tp2"])
def test_calls_and_bytes_are_those_that_torch_counts(name: str, mode: Checkpointing) -> None:
    load = replace(LOAD, global_batch_size=6, activation_checkpointing=mode)
    expected = {op: both for (op, _), both in traffic(name, load=load).items()}
    assert counted(placed(name, load), MODEL, load) == expected


# -- by hand


def test_one_rank_sends_nothing() -> None:
    assert traffic("tp1") == {}


def test_replicas_sum_their_gradients_once_a_step_however_many_micro_batches() -> None:
    once, often = replace(LOAD, global_batch_size=2), replace(LOAD, global_batch_size=32)
    assert volume("dp2", once) == volume("dp2", often) == {"all_reduce": 4 * PARAMETERS}


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # multiples of the bytes of all parameters, two micro-batches a step
        ("dp4zero1", {"all_reduce": 1, "all_gather": 1}),
        ("dp4zero2", {"all_reduce": 2, "all_gather": 1}),
        ("dp4zero3", {"all_gather": 4, "reduce_scatter": 2}),
    ],
)
def test_zero_sends_what_its_stage_cuts(name: str, expected: dict[str, int]) -> None:
    found = volume(name)
    assert found.keys() == expected.keys()
    for op, times in expected.items():
        assert found[op] / (4 * PARAMETERS) == pytest.approx(times, rel=0.01)  # padding


@pytest.mark.parametrize("name", ["tp1", "zero1", "zero2", "zero3"])
def test_one_replica_sends_nothing(name: str) -> None:
    assert volume(name, replace(LOAD, offload="optimizer")) == {}


def test_bf16_halves_what_is_sent() -> None:
    half = volume("dp2", replace(LOAD, precision="bf16"))
    assert half == {"all_reduce": 2 * PARAMETERS}


def test_fsdp_gathers_layers_twice_and_the_rest_once_a_micro_batch() -> None:
    layers = 4 * MODEL.num_layers * MODEL.layer_elements
    table = 4 * 102 * 32  # 101 rows of embedding and of head, padded to 102
    rest = 2 * table + 4 * 32
    found = traffic("fsdp2")  # four micro-batches
    assert found["all_gather", "fsdp"] == (4 * (2 * 6 + 1), 4 * (2 * layers + rest))
    assert found["reduce_scatter", "fsdp"] == (4 * (6 + 1), 4 * (layers + rest))


def test_replicas_of_fsdp_sum_the_part_that_each_rank_keeps() -> None:
    found = traffic("dp2fsdp2")
    scattered = found["reduce_scatter", "fsdp"][1] // 2  # two micro-batches
    assert found["all_reduce", "dp"] == (7, scattered // 2)


def test_tensor_parallelism_gathers_and_scatters_twice_a_layer_each_way() -> None:
    load = replace(LOAD, global_batch_size=1)
    found = traffic("tp2", load=load)
    each = 6 * 2 * 2 + 2  # two blocks of each layer, forward and back; embedding and head
    assert found["all_gather", "tp"] == found["reduce_scatter", "tp"] == (each, each * HIDDEN)
    norms = 2 * 6 + 1
    assert found["all_reduce", "tp"] == (norms + 3, norms * 4 * 32 + 3 * 4 * 16)


def test_recomputing_a_layer_communicates_again_but_for_its_last_output() -> None:
    full = replace(LOAD, global_batch_size=1, activation_checkpointing="full")
    found = traffic("tp2", load=full)
    assert (found["all_gather", "tp"][0], found["reduce_scatter", "tp"][0]) == (26 + 12, 26 + 6)


@pytest.mark.parametrize(
    ("schedule", "messages"),
    [("gpipe", (1, 2, 1)), ("1f1b", (1, 2, 1)), ("interleaved", (3, 4, 3))],
)
def test_each_boundary_of_a_pipeline_is_passed_forward_and_back(
    schedule: Schedule, messages: tuple[int, ...]
) -> None:
    load = replace(LOAD, schedule=schedule, global_batch_size=6)
    for rank, times in enumerate(messages):
        expected = (6 * times, 6 * times * HIDDEN)
        found = traffic("pp3", rank, load)
        assert found == {("send", "pp"): expected, ("recv", "pp"): expected}


def test_ranks_of_tp_send_their_part_of_the_activations() -> None:
    whole, parts = traffic("pp2")["send", "pp"], traffic("tp2pp2")["send", "pp"]
    assert parts == (whole[0], whole[1] // 2)


def test_a_pipeline_keeps_what_fsdp_gathered_to_go_back_with() -> None:
    """Four micro-batches of three layers, the embedding and the rest."""
    calls, _ = traffic("pp2fsdp2")["all_gather", "fsdp"]
    assert calls == 3 * (4 + 1) + 1
    assert traffic("pp2fsdp2")["reduce_scatter", "fsdp"][0] == 3 + 1


def test_a_tied_embedding_on_two_ranks_is_summed() -> None:
    tied = replace(MODEL, tie_embeddings=True)
    for rank in (0, 2):
        assert traffic("pp3", rank, model=tied)["all_reduce", "pp"] == (1, 4 * 101 * 32)
    assert ("all_reduce", "pp") not in traffic("pp3", 1, model=tied)


@pytest.mark.parametrize("name", ["pp3", "tp2pp2", "pp2fsdp2", "tp2pp2dp2"])
def test_what_is_sent_along_a_pipeline_is_received(name: str) -> None:
    total: Counter[str] = Counter()
    for rank in range(placed(name).num_ranks):
        for (op, _), (_, size) in traffic(name, rank).items():
            total[op] += size
    assert total["send"] == total["recv"] > 0


def test_a_layout_sends_the_sum_of_what_its_axes_send() -> None:
    both: dict[Any, Any] = traffic("tp2fsdp2")
    assert {axis for _, axis in both} == {"tp", "fsdp"}
    alone = traffic("tp2", load=replace(LOAD, global_batch_size=4))
    assert both["all_gather", "tp"] == alone["all_gather", "tp"]
