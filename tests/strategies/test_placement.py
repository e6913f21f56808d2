"""Layouts as data: what every placement is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts_inputs import DEGREES, INSTALLED, LOAD, PROPERTY, layouts, models, planned, shape

from strategies import LayoutError, ModelShape, Placement, Split, Topology, memory, plan_layout


@PROPERTY
@given(layouts())
def test_degrees_multiply_to_the_ranks(case: tuple[ModelShape, str, Placement]) -> None:
    _, _, placement = case
    assert (
        placement.num_ranks
        == math.prod(degree for _, degree in placement.mesh)
        == len(placement.devices)
    )
    ranks = range(placement.num_ranks)
    assert [placement.rank_at(placement.coordinates(rank)) for rank in ranks] == list(ranks)


@PROPERTY
@given(layouts())
def test_groups_of_an_axis_share_out_the_ranks(case: tuple[ModelShape, str, Placement]) -> None:
    _, _, placement = case
    for axis, degree in placement.mesh:
        groups = placement.groups(axis)
        assert sorted(itertools.chain(*groups)) == list(range(placement.num_ranks))
        assert {len(group) for group in groups} == {degree}


@PROPERTY
@given(layouts())
def test_every_layer_lives_on_one_stage_in_order(case: tuple[ModelShape, str, Placement]) -> None:
    model, _, placement = case
    assert [layer for stage in placement.stages for layer in stage.layers] == list(
        range(model.num_layers)
    )
    assert [stage.embed for stage in placement.stages] == [True] + [False] * (
        len(placement.stages) - 1
    )
    assert [stage.head for stage in placement.stages] == [False] * (len(placement.stages) - 1) + [
        True
    ]


@PROPERTY
@given(layouts())
def test_every_parameter_is_covered_exactly_once_in_each_replica(
    case: tuple[ModelShape, str, Placement],
) -> None:
    """Per element count: the distinct boxes of a parameter are disjoint and add up to the whole."""
    model, name, placement = case
    for parameter, size in model.parameters():
        # ZeRO cuts over the replicas; all other layouts keep a whole parameter in each of them.
        replicas = (
            [range(placement.num_ranks)]
            if "zero" in name
            else [
                [
                    rank
                    for rank in range(placement.num_ranks)
                    if placement.coordinates(rank).get("dp", 0) == replica
                ]
                for replica in range(placement.degree("dp"))
            ]
        )
        for ranks in replicas:
            held = [rank for rank in ranks if placement.holds(parameter, rank, model)]
            boxes = {
                tuple((s.start, s.stop) for s in placement.shard(parameter, size, rank))
                for rank in held
            }
            assert sum(
                math.prod(stop - start for start, stop in box) for box in boxes
            ) == math.prod(size)
            assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))


def overlap(a: tuple[tuple[int, int], ...], b: tuple[tuple[int, int], ...]) -> bool:
    return all(max(x[0], y[0]) < min(x[1], y[1]) for x, y in zip(a, b, strict=True))


@PROPERTY
@given(models(), DEGREES, st.integers(1, 4), st.integers(1, 3))
def test_the_order_of_parts_does_not_matter(model: ModelShape, tp: int, pp: int, dp: int) -> None:
    try:
        expected = plan_layout(f"tp{tp}pp{pp}dp{dp}", model, LOAD, Topology.uniform(64), INSTALLED)
    except LayoutError:
        return
    for parts in itertools.permutations([f"tp{tp}", f"pp{pp}", f"dp{dp}"]):
        assert plan_layout("".join(parts), model, LOAD, Topology.uniform(64), INSTALLED) == expected


def test_tensor_parallel_ranks_are_neighbours_and_replicas_far_apart() -> None:
    placement = planned("dp2tp2pp2")
    assert placement.mesh == (("dp", 2), ("pp", 2), ("tp", 2))
    assert placement.group("tp", 0) == (0, 1)
    assert placement.group("pp", 0) == (0, 2)
    assert placement.group("dp", 0) == (0, 4)


def test_fewer_kv_heads_than_ranks_are_replicated_over_neighbours() -> None:
    model = shape(num_heads=8, num_kv_heads=2)
    placement = planned("tp8", model)
    rows = [
        placement.shard("model.layers.0.self_attn.k_proj.weight", (8, 32), rank)[0]
        for rank in range(8)
    ]
    assert [(r.start, r.stop) for r in rows] == [(0, 4)] * 4 + [(4, 8)] * 4
    assert memory.kv_heads(placement, model, 0) == 1


def test_zero_stores_a_share_and_computes_with_the_whole() -> None:
    placement = planned("dp4zero3")
    stored = placement.shard("model.norm.weight", (32,), 1)
    used = placement.shard("model.norm.weight", (32,), 1, stored=False)
    assert (stored, used) == ((slice(8, 16),), (slice(0, 32),))
    assert placement.option("engine") == "deepspeed"


def test_a_new_axis_puts_ranks_on_devices_in_natural_order() -> None:
    assert planned("tp2").devices == (0, 1)
    assert planned("tp2dp3").devices == tuple(range(6))


def test_a_new_axis_does_not_drop_an_order_of_devices_that_was_chosen() -> None:
    chosen = replace(planned("tp2"), devices=(1, 0))
    with pytest.raises(LayoutError, match="axis dp renumbers the ranks and would lose the order"):
        chosen.with_axis("dp", 2)


def test_cuts_and_options_keep_the_order_of_devices() -> None:
    chosen = replace(planned("tp2"), devices=(1, 0))
    assert chosen.with_params({"model.norm.weight": Split("tp", 0)}).devices == (1, 0)
    assert chosen.with_options(engine="torch").devices == (1, 0)


def test_an_exact_name_wins_over_a_pattern_and_an_earlier_pattern_over_a_later() -> None:
    first, later, exact = Split("tp", 0), Split("tp", 1), Split("tp", 0, unit=2)
    placement = planned("dp2").with_params({"model.*": first, "*.weight": later, "model.a": exact})
    assert placement.splits("model.a") == (exact,)
    assert placement.splits("model.b.weight") == (first,)
    assert placement.pattern_of("lm_head.weight") == "*.weight"
    assert placement.splits("lm_head.bias") == ()
