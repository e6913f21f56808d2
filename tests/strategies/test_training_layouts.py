"""Layouts that are made for training: what is cut, and what only trains or only generates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from layouts_inputs import INSTALLED, LOAD, planned_with, refused, shape

from strategies import (
    LayoutError,
    ModelShape,
    Placement,
    Split,
    Topology,
    TrainingLoad,
    plan_layout,
)
from strategies.placement import Of

TRAINING = TrainingLoad(seq_len=16, global_batch_size=32, micro_batch_size=2)
GATE = "model.layers.3.mlp.gate_proj.weight"


def trained(name: str, model: ModelShape | None = None, load: TrainingLoad = TRAINING) -> Placement:
    topology = Topology.uniform(64)
    return plan_layout(name, model or shape(), load.load, topology, INSTALLED).placement


def kept(placement: Placement, of: Of, rank: int, model: ModelShape | None = None) -> int:
    """Elements of all parameters, gradients or optimizer state on a rank."""
    return sum(
        math.prod(part.stop - part.start for part in placement.shard(name, size, rank, of=of))
        for name, size in (model or shape()).parameters()
    )


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("dp4", ()),
        ("dp4zero1", ("optimizer",)),
        ("dp4zero2", ("optimizer", "grads")),
        ("dp4zero3", ("optimizer", "grads", "params")),
        ("fsdp4", ("optimizer", "grads", "params")),
    ],
)
def test_each_stage_of_zero_cuts_one_more_of_what_training_keeps(
    name: str, cut: tuple[str, ...]
) -> None:
    model, placement = shape(), trained(name)
    whole = model.num_parameters
    of: Of
    for of in ("params", "grads", "optimizer"):
        elements = [kept(placement, of, rank) for rank in range(4)]
        if of in cut:
            assert sum(elements) == whole
            assert max(elements) < 0.3 * whole
        else:
            assert elements == [whole] * 4
    assert placement.num_replicas == 4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_of_one_replica_cuts_nothing_and_is_for_what_is_offloaded(stage: int) -> None:
    placement = trained(f"dp1zero{stage}", load=replace(TRAINING, offload="optimizer"))
    assert placement == trained("tp1").with_options(engine="deepspeed", zero_stage=str(stage))
    with pytest.raises(LayoutError, match=r"dp4zero\d, or give --offload optimizer"):
        trained(f"zero{stage}")


@pytest.mark.parametrize("name", ["fsdp3", "tp2fsdp3", "tp4pp2fsdp3"])
def test_fsdp_cuts_what_other_axes_left_and_covers_every_element_once(name: str) -> None:
    model, placement = shape(), trained(name)
    for parameter, size in model.parameters():
        held = [r for r in range(placement.num_ranks) if placement.holds(parameter, r, model)]
        boxes = {
            tuple((part.start, part.stop) for part in placement.shard(parameter, size, rank))
            for rank in held
        }
        assert sum(math.prod(b - a for a, b in box) for box in boxes) == math.prod(size)
        assert placement.is_split(parameter, "fsdp")


def test_fsdp_cuts_rows_as_torch_chunk_does() -> None:
    rows = [trained("fsdp5").shard(GATE, (48, 32), rank)[0] for rank in range(5)]
    assert [part.stop - part.start for part in rows] == [10, 10, 10, 10, 8]
    few = [Split("fsdp", 0, chunked=True).bounds(5, rank, 4) for rank in range(4)]
    assert few == [(0, 2), (2, 4), (4, 5), (5, 5)]


def test_a_rank_computes_with_what_only_other_axes_cut() -> None:
    assert trained("tp2fsdp2").shard(GATE, (48, 32), 0, stored=False)[0] == slice(0, 24)
    assert trained("tp2fsdp2").shard(GATE, (48, 32), 0)[0] == slice(0, 12)


def test_fsdp_lies_between_dp_and_pp_and_deals_the_batch_out() -> None:
    placement = trained("dp2fsdp2pp2tp2")
    assert placement.mesh == (("dp", 2), ("fsdp", 2), ("pp", 2), ("tp", 2))
    assert placement.num_replicas == 4
    assert plan_layout("fsdp2pp2", shape(), TRAINING.load, Topology.uniform(4)).name == "pp2fsdp2"


def test_an_interleaved_pipeline_gives_each_rank_stages_that_are_far_apart() -> None:
    placement = trained("pp3", load=replace(TRAINING, schedule="interleaved"))
    assert [stage.pp_rank for stage in placement.stages] == [0, 1, 2, 0, 1, 2]
    assert [stage.layers for stage in placement.stages_of(1)] == [range(1, 2), range(4, 5)]
    assert placement.stages_of(0)[0].embed
    assert placement.stages_of(2)[1].head


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dp4zero1", "zero1 cuts nothing that inference holds"),
        ("dp4zero2", "zero2 cuts nothing that inference holds"),
        ("fsdp4", "fsdp4 only trains; to generate, use dp4, or dp4zero3"),
        ("dp4zero4", "zero4 is no stage of ZeRO; use zero1, zero2 or zero3"),
    ],
)
def test_a_layout_that_only_trains_is_refused_where_nothing_is_trained(
    name: str, message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        plan_layout(name, shape(), LOAD, Topology.uniform(4), INSTALLED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tp8", "tp=8 copies the 4 KV heads of m over ranks, which only generates"),
        ("zero1", "zero1 cuts optimizer state over data-parallel replicas; name them .* dp4zero1"),
        ("tp2dp2zero1", "zero1 is run beside dp alone; leave tp out of the layout"),
        ("dp2fsdp2zero2", "zero2 is run beside dp alone; leave fsdp out of the layout"),
    ],
)
def test_a_layout_that_cannot_train_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        trained(name)


@pytest.mark.parametrize(("layers", "most"), [(6, "1 to 3"), (3, "1")])
def test_an_interleaved_pipeline_of_more_stages_than_layers_is_refused(
    layers: int, most: str
) -> None:
    message = rf"of 2 to a rank, interleaved\) than m has layers; use {most}, or another --sch"
    model = replace(shape(), num_layers=layers)
    with pytest.raises(LayoutError, match=message):
        trained("pp4", model, replace(TRAINING, schedule="interleaved"))


def test_cuts_of_gradients_and_optimizer_state_are_checked_like_those_of_parameters() -> None:
    cut = {"model.norm.weight": Split("ep", 0)}
    for made in (lambda p: p.with_grads(cut), lambda p: p.with_optimizer(cut)):
        refused(
            made,
            "'model.norm.weight' is cut along the axis 'ep', but the mesh has no axis; add it with "
            "with_axis('ep', degree)",
        )
    wrong = {"model.norm.weight": Split("dp", 1)}
    with pytest.raises(LayoutError, match=r"model.norm.weight is cut along dim 1, but it has 1"):
        planned_with(lambda p: p.with_optimizer(wrong), "dp2x2")
