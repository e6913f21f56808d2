"""Bytes that training takes on a rank, against arithmetic by hand and against what torch counts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from layouts_inputs import shape
from pipeline_orders import SCHEDULES, most_in_flight, order_of
from saved import kept_compiled, taken, taken_by_a_step, taken_over_replicas

from strategies import ModelShape, Placement, Topology, TrainingLoad, plan_layout
from strategies.shapes import Checkpointing, Schedule, TrainingPrecision
from strategies.training import TrainingMemory, fullest, training_memory
from strategies.training.activations import in_flight, kept_bytes, layer_bytes, loss_bytes

GB, GIB = 10**9, 1 << 30
LLAMA_8B = ModelShape(
    "llama-8b", "llama", 4096, 32, 32, 8, 128, 14336, 128256, 131072, 1e-5, 5e5
)  # fmt: skip
LLAMA_3B = ModelShape(
    "llama-3b", "llama", 3072, 28, 24, 8, 128, 8192, 128256, 131072, 1e-5, 5e5, tie_embeddings=True
)  # fmt: skip
QWEN_14B = ModelShape(
    "qwen2.5-14b", "qwen2", 5120, 48, 40, 8, 128, 13824, 152064, 131072, 1e-5, 1e6, qkv_bias=True
)  # fmt: skip
COMPILED = ModelShape(
    "small", "llama", 64, 1, 4, 2, 16, 224, 512, 4096, 1e-5, 1e4
)  # fmt: skip
SCALES, STATE = 64, 5056  # bytes
RECOMPUTED = {"activation_checkpointing": "full"}
LONG = {"seq_len": 4096, "micro_batch_size": 1, **RECOMPUTED}
LOAD = TrainingLoad(seq_len=4096, global_batch_size=16)


def placed(name: str, model: ModelShape = LLAMA_8B, load: TrainingLoad = LOAD) -> Placement:
    return plan_layout(name, model, load.load, Topology.uniform(16)).placement


def memory(name: str, model: ModelShape = LLAMA_8B, load: TrainingLoad = LOAD) -> TrainingMemory:
    return fullest(placed(name, model, load), model, load)


# -- what is kept of a parameter


@pytest.mark.parametrize(
    ("name", "kept"),
    [  # of 8.03 billion parameters: bytes of a weight, a gradient, an optimizer's state on a GPU
        ("tp1", (2, 2, 12)),
        ("dp2", (2, 2, 12)),
        ("dp2zero1", (2, 2, 6)),
        ("dp2zero2", (2, 1, 6)),
        ("dp2zero3", (1, 1, 6)),
        ("fsdp2", (1, 1, 6)),
        ("dp2fsdp2", (1, 1, 6)),
        ("fsdp8", (0.25, 0.25, 1.5)),
        ("tp2", (1, 1, 6)),
        ("tp2fsdp2", (0.5, 0.5, 3)),
    ],
)
def test_a_parameter_takes_16_bytes_less_what_the_layout_cuts(
    name: str, kept: tuple[float, float, float]
) -> None:
    one, parameters = memory(name), LLAMA_8B.num_parameters
    found = one.weights / parameters, one.gradients / parameters, one.optimizer / parameters
    assert found == pytest.approx(kept, rel=1e-3)  # norms are whole on each rank of tp


def test_in_float32_a_parameter_has_no_copy() -> None:
    one, parameters = memory("tp1", load=replace(LOAD, precision="fp32")), LLAMA_8B.num_parameters
    assert (one.weights, one.gradients, one.optimizer) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )


def test_zero_copies_weights_that_are_float32_already() -> None:
    """So DeepSpeed's own do that were counted on a CPU."""
    fp32 = replace(LOAD, precision="fp32")
    for name, part in (("dp2zero1", 2), ("dp2zero2", 2), ("dp2zero3", 2), ("dp4zero3", 4)):
        found = memory(name, load=fp32).optimizer
        assert found == pytest.approx(12 * LLAMA_8B.num_parameters / part, rel=1e-3)


def test_a_pipeline_keeps_on_each_rank_what_its_stages_have() -> None:
    ranks = training_memory(placed("pp2"), LLAMA_8B, LOAD)
    assert sum(one.weights for one in ranks) == 2 * LLAMA_8B.num_parameters


@pytest.mark.parametrize(
    ("name", "model", "gigabytes"),
    [("dp2", LLAMA_8B, 128), ("dp2zero1", LLAMA_8B, 80), ("fsdp2", QWEN_14B, 118)],
)
def test_the_published_arithmetic_of_real_models(
    name: str, model: ModelShape, gigabytes: float
) -> None:
    one = memory(name, model)
    assert round((one.weights + one.gradients + one.optimizer) / GB) == gigabytes


def test_offload_moves_the_optimizer_and_its_gradients_to_main_memory() -> None:
    here = memory("dp2zero3", QWEN_14B)
    there = memory("dp2zero3", QWEN_14B, replace(LOAD, offload="optimizer"))
    assert (there.optimizer, there.gradients, there.weights) == (0, 0, here.weights)
    assert there.host.optimizer == here.optimizer
    assert there.host.gradients == 2 * here.gradients  # DeepSpeed steps from float32
    assert 2 * there.host.optimizer / GB == pytest.approx(177, abs=0.5)
    assert 2 * (there.host.total - there.host.buffers) / GB == pytest.approx(236, abs=0.5)
    params = memory("dp2zero3", QWEN_14B, replace(LOAD, offload="optimizer+params"))
    assert (params.weights, params.host) == (0, replace(there.host, weights=here.weights))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_replica_offloads_all_that_two_share_out(stage: int) -> None:
    load = replace(LOAD, offload="optimizer")
    alone, shared = (memory(name, load=load) for name in (f"zero{stage}", f"dp2zero{stage}"))
    assert alone.optimizer == 0
    assert alone.host.optimizer == pytest.approx(2 * shared.host.optimizer, rel=1e-3)
    assert alone.host.gradients == pytest.approx(2 * shared.host.gradients, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "load", "bytes_a_parameter"),
    [
        ("dp2zero1", LOAD, 18),  # and weights in bf16, on their way back
        ("dp2zero2", LOAD, 20),  # and the sums of several micro-batches, in bf16
        ("dp2zero2", replace(LOAD, global_batch_size=2), 18),
        ("dp2zero3", LOAD, 16),
        ("dp2zero1", replace(LOAD, precision="fp32"), 20),
        ("dp2zero3", replace(LOAD, precision="fp32"), 16),
        ("dp2zero3", replace(LOAD, precision="fp16"), 21),  # is one of them infinite?
    ],
)
def test_what_deepspeed_keeps_in_main_memory_is_more_than_its_optimizer(
    name: str, load: TrainingLoad, bytes_a_parameter: int
) -> None:
    host = memory(name, load=replace(load, offload="optimizer")).host
    width = 4 if load.precision == "fp32" else 2
    part, largest = LLAMA_8B.num_parameters / 2, 128256 * 4096
    beside = width * largest  # the largest parameter, or a sub-group's weights on their way back
    if name == "dp2zero3":
        beside = width * 1_027_604_480 if load.precision == "bf16" else 0
    assert (host.total - beside) / part == pytest.approx(bytes_a_parameter, rel=1e-3)


def test_fsdp_pins_each_parameter_and_gradient_in_a_power_of_two() -> None:
    host = memory("fsdp2", QWEN_14B, replace(LOAD, offload="optimizer+params")).host
    here = memory("fsdp2", QWEN_14B)
    assert host.weights == host.gradients
    assert 1.5 * here.weights < host.weights < 2 * here.weights
    layer = QWEN_14B.intermediate_size * QWEN_14B.hidden_size  # 71 MB of two bytes, cut in two
    assert host.weights > 48 * 3 * 2**27 > 48 * 3 * layer


@pytest.mark.parametrize(
    ("name", "precision", "bytes_a_parameter"),
    [("dp2zero1", "bf16", 6), ("tp1", "bf16", 12), ("tp1", "fp32", 12), ("fsdp2", "bf16", 6)],
)
def test_an_offloaded_optimizer_alone_leaves_gradients_where_they_are(
    name: str, precision: TrainingPrecision, bytes_a_parameter: int
) -> None:
    """In float32 there is a copy of the weights in main memory then, for ZeRO aside, beside 8."""
    load = replace(LOAD, precision=precision)
    here, there = memory(name, load=load), memory(name, load=replace(load, offload="optimizer"))
    assert (there.optimizer, there.gradients) == (0, here.gradients)
    taken = bytes_a_parameter * LLAMA_8B.num_parameters
    assert there.host.optimizer == pytest.approx(taken, rel=1e-3)
    if "zero" not in name:  # of the engine `torch`, gradients come one chunk at a time
        largest = 128256 * 4096 // (2 if name == "fsdp2" else 1)
        # and what is moved, for which torch pins a power of two
        pinned = {("fsdp2", "bf16"): 2**29, ("tp1", "bf16"): 2**30, ("tp1", "fp32"): 2**31}
        wide = 4 * max(2**27, largest) if precision == "bf16" else 0
        assert there.host.buffers == pinned[name, precision] + wide
        assert there.host.gradients == 0


def test_fp8_takes_what_its_dtype_does_and_both_sides_of_a_product() -> None:
    short = replace(LOAD, seq_len=8192)
    wide, eight = memory("tp1", load=short), memory("tp1", load=replace(short, precision="fp8"))
    assert (eight.weights, eight.optimizer) == (wide.weights, wide.optimizer)
    assert eight.total >= wide.total


def test_what_fits_leaves_room_for_contexts() -> None:
    full = replace(LOAD, activation_checkpointing="full", global_batch_size=2)
    one = memory("dp2", load=full)
    assert one.fits(141 * GIB)
    assert not one.fits(80 * GIB)
    assert one.fits(0)  # unknown
    assert not one.fits(one.total)


# -- activations


def test_a_layer_keeps_what_is_worked_out_by_hand() -> None:
    """Of one token of the 8B in bf16: two norms of 6 x 4096 + 4 bytes and their outputs of 2 x
    4096; queries and attention's output of 2 x 4096, keys and values of 2 x 1024, 32 sums of 4;
    four tensors of the MLP of 2 x 14336."""
    by_hand = 2 * (6 * 4096 + 4) + 2 * 2 * 4096
    by_hand += 2 * 2 * 4096 + 2 * 2 * 1024 + 32 * 4 + 4 * 2 * 14336
    assert layer_bytes(placed("tp1"), LLAMA_8B, LOAD, "off") == 4096 * by_hand
    assert layer_bytes(placed("tp1"), LLAMA_8B, LOAD, "full") == 4096 * 2 * 4096


def test_sequence_parallelism_cuts_all_of_a_layer_but_the_inputs_of_its_products() -> None:
    whole = layer_bytes(placed("tp1"), LLAMA_8B, LOAD, "off")
    inputs = 4096 * 2 * 2 * 4096
    assert layer_bytes(placed("tp4"), LLAMA_8B, LOAD, "off") == (whole - inputs) // 4 + inputs


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("mode", ["off", "full", "selective"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_is_kept_is_what_torch_keeps(
    family: str, mode: Checkpointing, precision: TrainingPrecision
) -> None:
    model = shape(
        family=family,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        output_bias=False,
        num_layers=3,
    )
    load = TrainingLoad(64, 2, 2, precision=precision, activation_checkpointing=mode)
    found, gradients, _ = taken(model, load)
    kept, _ = kept_bytes(placed("tp1", model, load), model, load, 0, 1)
    width, tokens = 4 if precision == "fp32" else 2, 2 * 64
    beside = width * tokens * model.vocab_size + 8 * tokens  # logits; tokens
    beside += 2 * width * 64 * model.head_dim + (0 if mode == "off" else 8 * 64)  # positions
    assert found == kept + beside
    assert gradients == width * model.num_parameters


@pytest.mark.parametrize(
    ("family", "mode", "precision"),
    [
        ("llama", "off", "bf16"),
        ("llama", "off", "fp32"),
        ("llama", "selective", "bf16"),
        ("llama", "full", "bf16"),
        ("qwen2", "off", "bf16"),
        ("qwen3", "off", "bf16"),
    ],
)
def test_what_a_compiled_layer_keeps_is_what_torch_keeps(
    family: str, mode: Checkpointing, precision: TrainingPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the partitioner that torch compiles with; the kernels themselves are not compiled. Where
    attention is recomputed, the state of a generator is beside it."""
    partitioned = partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", partitioned)
    model = replace(COMPILED, family=family, qkv_bias=family == "qwen2", qk_norm=family == "qwen3")
    load = TrainingLoad(
        256, 2, 2, precision=precision, activation_checkpointing=mode, compiles=True
    )
    found = kept_compiled(model, load)
    expected = layer_bytes(Placement.single(model), model, load, mode)
    assert found == expected + (STATE if mode == "full" else 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_so_it_is_where_its_kernels_are_compiled(family: str, precision: TrainingPrecision) -> None:
    """In FP8 with a few scales beside it."""
    if precision == "fp8":
        pytest.importorskip("torchao")
    model = replace(COMPILED, family=family, qk_norm=family == "qwen3")
    load = TrainingLoad(256, 2, 2, precision=precision, compiles=True)
    expected = layer_bytes(Placement.single(model), model, load, "off")
    found = kept_compiled(model, load)
    assert expected <= found <= expected + (SCALES if precision == "fp8" else 0)


def test_a_compiled_layer_keeps_what_is_worked_out_by_hand() -> None:
    """Of one token of the 8B in bf16: four tensors of 2 x 4096, two factors of 4; queries and
    attention's output, keys and values, sums; three tensors of the MLP. Over tp two are whole. In
    FP8 neither what norms make nor the last product's input is kept."""
    load = replace(LOAD, compiles=True)
    attention, mlp = 2 * 2 * 4096 + 2 * 2 * 1024 + 32 * 4, 2 * 14336
    cut = 2 * (2 * 4096 + 4) + attention + 3 * mlp
    assert layer_bytes(placed("tp1"), LLAMA_8B, load, "off") == 4096 * (cut + 2 * 2 * 4096)
    assert layer_bytes(placed("tp4"), LLAMA_8B, load, "off") == 4096 * (cut // 4 + 2 * 2 * 4096)
    eight = replace(load, precision="fp8")
    assert layer_bytes(placed("tp1"), LLAMA_8B, eight, "off") == 4096 * (cut - mlp)


@pytest.mark.parametrize(
    ("name", "precision", "measured", "before"),
    [
        ("fsdp2", "bf16", 107.43, 131.9),
        ("tp2", "bf16", 93.83, 101.3),
        ("pp2", "bf16", 101.61, 117.7),
        ("fsdp2", "fp8", 95.62, 131.9),
    ],
)
def test_the_peak_of_compiled_layers_is_that_of_two_gpus(
    name: str, precision: TrainingPrecision, measured: float, before: float
) -> None:
    """The fullest rank of two H200, in GB: docs/results/2xh200/training-llama-8b. before: as if
    layers were not compiled."""
    load = TrainingLoad(4096, 8, 2, precision=precision, compiles=True)
    assert memory(name, load=load).total / GB == pytest.approx(measured, rel=0.01)
    eager = replace(load, compiles=False)
    assert memory(name, load=eager).total / GB == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize(
    ("name", "changed", "measured"),
    [
        ("dp2", {"activation_checkpointing": "full"}, 135.17),
        ("pp2", {"schedule": "interleaved"}, 110.22),
        ("fsdp2", {"activation_checkpointing": "full"}, 73.03),
        ("fsdp2", {"activation_checkpointing": "selective"}, 95.62),
        ("fsdp2", {"activation_checkpointing": "cpu-offload"}, 70.89),
        ("fsdp2", {"micro_batch_size": 1}, 87.39),
    ],
)
def test_the_peak_with_one_thing_changed_is_that_of_two_gpus(
    name: str, changed: dict[str, Any], measured: float
) -> None:
    """The fullest rank of two H200, in GB, of runs made after the arithmetic:
    docs/results/2xh200/training-llama-8b."""
    load = replace(TrainingLoad(4096, 8, 2, compiles=True), **changed)
    assert memory(name, load=load).total / GB == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    ("name", "model", "changed", "measured"),
    [
        ("dp2zero3", LLAMA_8B, {}, 134.98),
        ("dp2zero3", LLAMA_8B, {**RECOMPUTED, "offload": "optimizer"}, 28.27),
        ("dp2zero2", LLAMA_8B, {}, 140.00),
        ("dp2zero1", LLAMA_8B, RECOMPUTED, 98.57),
        ("tp1", LLAMA_3B, {}, 73.98),
        ("zero2", LLAMA_3B, {**RECOMPUTED, "offload": "optimizer"}, 15.44),
        ("zero3", LLAMA_3B, {**RECOMPUTED, "offload": "optimizer"}, 15.66),
    ],
)
def test_the_peak_under_deepspeed_is_that_of_gpus(
    name: str, model: ModelShape, changed: dict[str, Any], measured: float
) -> None:
    """The fullest rank, in GB: docs/results/2xh200/training-llama-8b/zero, offload and
    zero1-recomputed, docs/results/1xh200/training-llama-3b/deepspeed and offload."""
    batch = (8, 2) if model is LLAMA_8B else (4, 1)
    load = replace(TrainingLoad(4096, *batch, keeps_gradients=True), **changed)
    assert memory(name, model, load).total / GB == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize(
    ("name", "changed", "counted"),
    [
        ("dp2zero3", {}, 71.7),
        ("dp2zero3", {**RECOMPUTED, "offload": "optimizer"}, 14.6),
        ("dp2zero2", RECOMPUTED, 96.7),
        ("dp2zero2", {**RECOMPUTED, "offload": "optimizer"}, 23.7),
        ("dp2zero2", {**LONG, "activation_checkpointing": "off"}, 110.2),
        ("dp2zero2", {**LONG, "offload": "optimizer"}, 25.8),
        ("dp2zero3", LONG, 76.0),
        ("dp2zero3", {**LONG, "precision": "fp32"}, 97.4),
    ],
)
def test_the_peak_under_zero_is_that_which_deepspeed_reaches_on_a_cpu(
    name: str, changed: dict[str, Any], counted: float
) -> None:
    """In GB: what was alive on two ranks, with all sizes of the model, of the micro-batch and of
    DeepSpeed's buckets a 64th, or a 4096th, so that bytes are a 4096th of these; without the copy
    that gloo makes of what it scatters."""
    load = replace(TrainingLoad(256, 8, 2), **changed)
    assert memory(name, load=load).total / GB == pytest.approx(counted, rel=0.02)


def test_the_loss_takes_what_is_worked_out_by_hand() -> None:
    """Of a logit, in bytes: three float32, over tp a fourth; compiled, two of the logits' own, but
    over tp, where it is not compiled."""
    compiles = replace(LOAD, compiles=True)
    found = [
        loss_bytes(placed(name), LLAMA_8B, load, 0) / (4096 * 128256)
        for name in ("tp1", "tp2")
        for load in (LOAD, compiles)
    ]
    assert found == [12, 4, 16 / 2, 16 / 2]


@pytest.mark.parametrize("mode", ["off", "full", "selective"])
def test_the_peak_is_that_which_torch_reaches(mode: Checkpointing) -> None:
    """Of layers as wide as the 8B's, with its vocabulary, before there is an optimizer and at the
    loss, where there are no gradients yet."""
    model = replace(LLAMA_8B, num_layers=3)
    load = replace(LOAD, activation_checkpointing=mode)
    _, _, peak = taken(model, load)
    one = fullest(Placement.single(model), model, load)
    assert one.weights + one.activations == pytest.approx(peak, rel=0.01)


# -- gradients beside activations


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("seq_len", "mode"), [(256, "off"), (1024, "full"), (2048, "off"), (4096, "full")]
)
def test_the_peak_of_a_step_is_that_which_torch_reaches(
    seq_len: int, mode: Checkpointing, tied: bool, precision: TrainingPrecision, micro_batches: int
) -> None:
    """Of layers as wide as the 8B's, with its vocabulary: at the loss, in the first or the last
    layer that goes back, where a tied matrix has its gradients summed, or in the update."""
    model = replace(LLAMA_8B, num_layers=4, tie_embeddings=tied)
    load = TrainingLoad(seq_len, micro_batches, precision=precision, activation_checkpointing=mode)
    found = fullest(Placement.single(model), model, load).total
    assert found == pytest.approx(taken_by_a_step(model, load, micro_batches), rel=0.0025)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_update_of_several_kernels_takes_two_tensors_more(precision: TrainingPrecision) -> None:
    model = replace(LLAMA_8B, num_layers=4)
    load = TrainingLoad(128, 1, precision=precision, fuses_updates=False)
    found = fullest(Placement.single(model), model, load).total
    assert found == pytest.approx(taken_by_a_step(model, load, 1), rel=0.0025)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_peak_of_fsdp_is_that_which_torch_reaches(tied: bool, micro_batches: int) -> None:
    """Beside the optimizer's state, which torch does not count here. Where sequences are short, the
    end takes the most, and is known less closely."""
    model = replace(LLAMA_8B, num_layers=4, tie_embeddings=tied)
    for seq_len, near in ((4096, 0.001), (128, 0.09)):
        load = TrainingLoad(seq_len, 2 * micro_batches)
        one = memory("fsdp2", model, load)
        found = taken_over_replicas(model, load, micro_batches, 2)
        assert one.total - one.optimizer == pytest.approx(found, rel=near)


@pytest.mark.parametrize(("micro_batch_size", "measured"), [(1, 54.38), (2, 57.29), (4, 56.68)])
def test_the_peak_of_fewer_larger_micro_batches_is_that_of_a_gpu(
    micro_batch_size: int, measured: float
) -> None:
    """Of one H200, in GB: docs/results/1xh200/training-llama-3b/accumulation. The largest is the
    whole batch, and has no gradients at its peak."""
    load = TrainingLoad(4096, 4, micro_batch_size, activation_checkpointing="full", compiles=True)
    one = memory("tp1", LLAMA_3B, load)
    assert one.total / GB == pytest.approx(measured, rel=0.002)
    assert one.gradients == (0 if micro_batch_size == 4 else one.weights)


@pytest.mark.parametrize("name", ["tp1", "tp2", "fsdp2", "dp2fsdp2", "tp2dp2", "tp2fsdp2"])
def test_one_micro_batch_has_no_gradients_at_its_loss_and_few_activations_at_its_end(
    name: str,
) -> None:
    replicas = placed(name).num_replicas
    long, short = (TrainingLoad(length, replicas) for length in (16384, 64))
    accumulated = memory(name, load=replace(long, global_batch_size=2 * replicas))
    one = memory(name, load=long)
    assert (one.gradients, accumulated.gradients) == (0, accumulated.weights)
    assert one == replace(accumulated, gradients=0)
    end = memory(name, load=short)
    assert end.gradients == end.weights
    assert end.activations < GB / 50


@pytest.mark.parametrize("name", ["dp2", "dp2zero1", "dp2zero2", "dp2zero3", "pp2", "pp2fsdp2"])
def test_what_keeps_gradients_has_them_beside_activations_always(name: str) -> None:
    """DDP in its buckets; of DeepSpeed and of pipelines nothing is left out."""
    load = TrainingLoad(16384, placed(name).num_replicas, schedule="gpipe")
    one, parameters = memory(name, load=load), LLAMA_8B.num_parameters
    cut = 1 if name in ("dp2", "dp2zero1") else 4 if name == "pp2fsdp2" else 2
    assert one.gradients == pytest.approx(2 * parameters / cut, rel=1e-3)
    assert one.activations > 12 * 16384 * 128256


def test_an_engine_that_keeps_gradients_has_them_and_logits_beside_activations() -> None:
    load = TrainingLoad(16384, 1)
    one, kept = (memory("tp1", load=replace(load, keeps_gradients=is_so)) for is_so in (0, 1))
    logits = 2 * 16384 * 128256
    assert kept == replace(one, gradients=one.weights, activations=one.activations + logits)


def test_gradients_of_one_micro_batch_are_in_main_memory_where_they_are_offloaded() -> None:
    here = memory("fsdp2", load=TrainingLoad(4096, 4))
    there = memory("fsdp2", load=TrainingLoad(4096, 2, offload="optimizer+params"))
    assert there.gradients == 0
    assert there.host.gradients >= here.gradients


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "count"), [(2, 2), (2, 4), (3, 7), (4, 8), (4, 16)])
def test_as_many_micro_batches_are_in_flight_as_in_the_order_of_torch(
    schedule: Schedule, ranks: int, count: int
) -> None:
    if schedule == "interleaved" and count == 7:
        count = 6  # 7 are no multiple of the rounds over 3 ranks
    load, order = replace(LOAD, schedule=schedule), order_of(schedule, ranks, count)
    for rank, acts in order.items():
        assert in_flight(load, ranks, rank, count) == most_in_flight(acts)


def test_gpipe_keeps_the_activations_of_every_micro_batch_and_1f1b_of_as_many_as_stages() -> None:
    layer = layer_bytes(placed("pp2"), LLAMA_8B, LOAD, "off")
    for schedule, flying in (("1f1b", 2), ("gpipe", 16)):
        load = replace(LOAD, schedule=schedule)
        placement = placed("pp2", load=load)
        layers = len(placement.stages[0].layers)
        kept, _ = kept_bytes(placement, LLAMA_8B, load, 0, 16)
        assert kept == flying * layers * layer


def test_offloaded_activations_lie_in_main_memory() -> None:
    one = memory("tp1", load=replace(LOAD, activation_checkpointing="cpu-offload"))
    assert one.host.total == 32 * 4096 * 2 * 4096
    full = memory("tp1", load=replace(LOAD, activation_checkpointing="full"))
    assert full.activations - one.activations == one.host.activations


# -- buffers


def test_fsdp_has_what_is_in_no_layer_gathered_where_the_loss_takes_the_most() -> None:
    apart = 2 * 128256 * 4096 + 4096
    one = memory("fsdp2")
    assert one.buffers == 2 * apart
    assert one.activations > 12 * 4096 * 128256


def test_replicas_have_gradients_once_however_many_micro_batches_are_summed() -> None:
    """In DDP's buckets alone: 16 bytes a parameter under accumulation too."""
    one = memory("dp2", load=replace(LOAD, activation_checkpointing="full"))
    assert one.buffers == 0
    assert one.weights + one.gradients + one.optimizer == 16 * LLAMA_8B.num_parameters
    assert one.fits(141 * GIB)


def test_fsdp_has_two_layers_and_their_gradients_where_going_back_takes_the_most() -> None:
    short = replace(LOAD, seq_len=256)
    apart, head = 2 * 128256 * 4096 + 4096, 128256 * 4096
    one = memory("fsdp2", load=short)
    assert one.buffers == 2 * (apart + head + 4 * LLAMA_8B.layer_elements)


def test_fsdp_in_a_pipeline_keeps_its_stage_gathered() -> None:
    stage = training_memory(placed("pp2"), LLAMA_8B, LOAD)[0]
    one = training_memory(placed("pp2fsdp2"), LLAMA_8B, LOAD)[0]
    received = 4096 * 4096 * 2 * 8
    assert one.buffers == stage.weights + stage.gradients + received


@pytest.mark.parametrize(
    ("name", "batch", "elements"),
    [
        ("dp2zero1", 16, 500_000_000),
        ("dp2zero1", 4, 0),  # one micro-batch
        ("dp2zero2", 16, 0),
        ("dp2zero3", 16, 1_500_000_000),
    ],
)
def test_at_the_loss_zero_has_a_bucket_where_it_stays_and_what_is_gathered(
    name: str, batch: int, elements: int
) -> None:
    """Gathered are 10^9 elements, whatever is computed with."""
    load = replace(LOAD, global_batch_size=batch, micro_batch_size=2)
    assert memory(name, load=load).buffers == 2 * elements


def test_one_rank_gathers_only_what_is_in_main_memory() -> None:
    here, there = (
        memory("zero3", load=replace(LOAD, offload=what)).buffers
        for what in ("optimizer", "optimizer+params")
    )
    assert (here, there) == (2 * 500_000_000, 2 * 1_500_000_000)


@pytest.mark.parametrize("name", ["dp2zero1", "dp2zero2", "dp2zero3"])
def test_the_bucket_of_zero_is_as_large_for_a_small_model(name: str) -> None:
    assert memory(name, COMPILED, replace(LOAD, seq_len=64)).buffers >= 2 * 500_000_000


def test_a_matrix_larger_than_what_zero_gathers_ahead_is_gathered_all_the_same() -> None:
    wide = replace(LLAMA_8B, vocab_size=2**19)
    assert memory("dp2zero3", wide).buffers == 2 * (500_000_000 + 2**19 * 4096)


@pytest.mark.parametrize("name", ["zero1", "dp2zero1", "dp2zero2"])
def test_offloaded_zero_has_the_largest_gradient_once_more_and_updates_in_main_memory(
    name: str,
) -> None:
    """So a 3B under zero2 took 15.4 GB on an H200, and no 20. Where sequences are short, it is
    there in float64 for its norm, as it came, and in the bucket with others."""
    load = replace(LOAD, offload="optimizer", activation_checkpointing="full")
    largest, bucket = 128256 * 4096, 500_000_000
    long, short = (memory(name, load=replace(load, seq_len=size)) for size in (4096, 128))
    assert long.buffers == 2 * largest + (2 * bucket if "zero1" in name else 0)
    assert short.buffers == (2 + 2 + 8) * largest + 2 * bucket


@pytest.mark.parametrize("name", ["dp2zero1", "dp2zero2", "dp4zero2"])
def test_zero_updates_from_flat_gradients_of_its_part_and_a_copy_in_float32(name: str) -> None:
    """That is the fullest moment where little is kept of the activations."""
    load = replace(LOAD, seq_len=128, activation_checkpointing="full")
    one, part = memory(name, load=load), LLAMA_8B.num_parameters / placed(name).num_ranks
    assert one.gradients == pytest.approx(2 * part, rel=1e-3)
    assert one.buffers == pytest.approx((2 + 4) * part, rel=1e-3)
