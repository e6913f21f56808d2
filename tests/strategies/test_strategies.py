"""Layouts as data: what every placement must be, and what is refused and how."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import (
    LayoutError,
    Load,
    ModelShape,
    Placement,
    Topology,
    discover,
    memory,
    parse,
    plan_layout,
    traffic,
)
from strategies.pipeline import balance
from strategies.registry import GROUP, Installed

LOAD = Load(16, 16, 8)
INSTALLED = discover()
PROPERTY = settings(deadline=None, max_examples=60)  # the machine may be busy with other tests
DEGREES = st.sampled_from([1, 2, 3, 4, 6, 8])


def shape(**changes: int | bool) -> ModelShape:
    base = ModelShape(
        "m",
        "qwen3",
        32,
        6,
        8,
        4,
        4,
        48,
        101,
        64,
        1e-6,
        1e4,
        qkv_bias=True,
        output_bias=True,
        qk_norm=True,
    )
    return ModelShape(**{**{name: getattr(base, name) for name in base.__slots__}, **changes})  # type: ignore[arg-type]


def planned(name: str, model: ModelShape | None = None) -> Placement:
    return plan_layout(name, model or shape(), LOAD, Topology.uniform(64), INSTALLED).placement


@st.composite
def models(draw: st.DrawFn) -> ModelShape:
    kv_heads, group = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 3]))
    return shape(
        num_layers=draw(st.integers(1, 13)),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * group,
        intermediate_size=draw(st.sampled_from([24, 48, 96])),
        vocab_size=draw(st.integers(8, 200)),
        tie_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ModelShape, str, Placement]:
    """A model and a layout that it can have."""
    model = draw(models())
    if draw(st.integers(0, 4)) == 0:
        name = f"dp{draw(st.integers(2, 5))}zero3"
    else:
        parts = [
            f"tp{draw(DEGREES)}",
            f"pp{draw(st.integers(1, 5))}",
            f"dp{draw(st.integers(1, 3))}",
        ]
        name = "".join(draw(st.permutations(parts)))
    try:
        return model, name, planned(name, model)
    except LayoutError:
        return model, "tp1", Placement.single(model)


# -- what every placement is


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


@PROPERTY
@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_stages_are_as_even_as_whole_layers_allow(
    layers: int, stages: int, layer: int, first: int, last: int
) -> None:
    if stages > layers:
        return
    counts = balance(layers, stages, layer, first, last)
    assert sum(counts) == layers
    assert min(counts) >= 1
    extra = [first * (i == 0) + last * (i == stages - 1) for i in range(stages)]
    heaviest = max(count * layer + more for count, more in zip(counts, extra, strict=True))
    # Moving one layer off a heaviest stage would make another at least as heavy.
    for i, count in enumerate(counts):
        if count > 1 and count * layer + extra[i] == heaviest:
            assert all(
                (counts[j] + 1) * layer + extra[j] >= heaviest for j in range(stages) if j != i
            )


@PROPERTY
@given(layouts(), st.integers(1, 5))
def test_what_is_sent_along_a_pipeline_is_received(
    case: tuple[ModelShape, str, Placement], batch: int
) -> None:
    model, _, placement = case
    total: Counter[str] = Counter()
    for rank in range(placement.num_ranks):
        for one in traffic.decode_step(placement, model, rank, batch, 2):
            total[one.op] += one.bytes
    assert total["send"] == total["recv"]


# -- particular layouts


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


def test_tensor_parallelism_needs_two_all_reduces_a_layer_and_one_for_the_embedding() -> None:
    model = shape()
    found = {t.op: t for t in traffic.decode_step(planned("tp2"), model, 0, batch=3, dtype_bytes=2)}
    assert found["all_reduce"].calls == 2 * model.num_layers + 1
    assert found["all_reduce"].bytes == (2 * model.num_layers + 1) * 3 * 32 * 2
    assert found["all_gather"].bytes == 3 * 2 * traffic.CANDIDATE_BYTES


def test_weights_of_all_ranks_add_up_where_nothing_is_replicated() -> None:
    model = shape(tie_embeddings=False)
    whole = memory.weight_bytes(Placement.single(model), model, 0, 2)
    assert whole == 2 * model.num_parameters
    assert sum(memory.weight_bytes(planned("pp3"), model, rank, 2) for rank in range(3)) == whole
    assert (
        sum(memory.weight_bytes(planned("dp2"), model, rank, 2) for rank in range(2)) == 2 * whole
    )
    assert (
        sum(memory.weight_bytes(planned("dp4zero3"), model, rank, 2) for rank in range(4)) == whole
    )


def test_kv_of_a_rank_is_its_layers_and_heads() -> None:
    model = shape()
    assert memory.kv_bytes_per_token(Placement.single(model), model, 0, 2) == 2 * 6 * 4 * 4 * 2
    assert memory.kv_bytes_per_token(planned("tp2pp2"), model, 0, 2) == 2 * 3 * 2 * 4 * 2
    assert memory.kv_bytes_per_token(planned("dp2"), model, 0, 2) == 2 * 6 * 4 * 4 * 2


def test_zero_needs_room_for_the_layers_that_it_gathers() -> None:
    """Two layers, or the embedding where that is more; of four ranks, three quarters come from
    others."""
    model = shape(tie_embeddings=False)
    layer = sum(math.prod(dims) for _, dims in model.layer_parameters())
    most = max(2 * layer, model.vocab_size * model.hidden_size)
    assert memory.gathered_bytes(planned("dp4"), model, 0, 2) == 0
    assert memory.gathered_bytes(planned("dp4zero3"), model, 0, 2) == pytest.approx(
        2 * most * 3 / 4, rel=0.02
    )


def test_zero_stores_a_share_and_computes_with_the_whole() -> None:
    placement = planned("dp4zero3")
    stored = placement.shard("model.norm.weight", (32,), 1)
    used = placement.shard("model.norm.weight", (32,), 1, stored=False)
    assert (stored, used) == ((slice(8, 16),), (slice(0, 32),))
    assert placement.option("engine") == "deepspeed"


# -- names


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("tp4", "tp4"),
        ("TP4", "tp4"),
        ("pp2tp2", "tp2pp2"),
        ("3d", "tp2pp2"),
        ("tp2pp2dp1", "tp2pp2"),
        ("dp2pp3tp2", "tp2pp3dp2"),
        ("tp1", "tp1"),
        ("pp1dp1", "tp1"),
        ("zero3dp4", "dp4zero3"),
    ],
)
def test_a_layout_has_one_canonical_name(name: str, canonical: str) -> None:
    assert plan_layout(name, shape(), LOAD, Topology.uniform(12), INSTALLED).name == canonical


def test_a_name_is_keys_with_numbers() -> None:
    assert parse("tp2pp16") == (("tp", 2), ("pp", 16))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("four", "'four' is not a layout; write strategy and number, as in tp4"),
        ("", "'' is not a layout"),
        ("tp", "not a layout"),
        ("4tp", "not a layout"),
        ("tp-2", "not a layout"),
        ("tq4", "there is no strategy 'tq'; did you mean 'tp4'\\? Installed: dp, .*pp, tp, zero"),
        ("tp0", "tp0 makes no sense; numbers go from 1 to 4096"),
        ("dp999999999", "dp999999999 makes no sense"),
        ("tp2tp2", "a strategy is named twice"),
        ("tp3", "8 heads of m do not divide over tp=3; use 1, 2, 4, 8"),
        ("pp7", "pp=7 is more stages than m has layers; use 1 to 6"),
        ("zero2dp2", "zero2 cuts nothing that inference holds .* use zero3"),
        (
            "zero3",
            "zero3 cuts parameters over data-parallel replicas; name them too, as in dp4zero3",
        ),
        ("tp2dp2zero3", "zero3 is run beside dp alone"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        planned(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_heads": 6, "num_kv_heads": 6},
            "6 heads of m do not divide over tp=4; use 1, 2, 3, 6",
        ),
        ({"num_heads": 12, "num_kv_heads": 6}, "6 KV heads of m do not divide over tp=4"),
        ({"intermediate_size": 50}, "50 MLP columns of m do not divide over tp=4; use 1, 2"),
    ],
)
def test_tensor_parallelism_says_what_does_not_divide(
    changes: dict[str, int], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        planned("tp4", shape(**changes))


def test_a_broken_strategy_is_named_and_the_others_work() -> None:
    installed = {
        **INSTALLED,
        "bad": Installed("bad", "bad-package", None, "ImportError: no such thing"),
    }
    assert plan_layout("tp2", shape(), LOAD, Topology.uniform(2), installed).name == "tp2"
    with pytest.raises(
        LayoutError, match="'bad' from bad-package could not be loaded: ImportError: no such thing"
    ):
        plan_layout("bad2", shape(), LOAD, Topology.uniform(2), installed)


def fails(*_: Any) -> Placement:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("refine", "why"),
    [
        (lambda *_: None, "it returned NoneType, not a Placement"),
        (fails, "ZeroDivisionError: by zero"),
        (3, "TypeError: 'int'"),
    ],
)
def test_a_strategy_that_fails_is_a_refusal(refine: Any, why: str) -> None:
    installed = {**INSTALLED, "bad": Installed("bad", "bad-package", refine)}
    with pytest.raises(
        LayoutError, match=f"tp2bad2: the strategy 'bad' from bad-package failed: {why}"
    ):
        plan_layout("tp2bad2", shape(), LOAD, Topology.uniform(4), installed)


def test_two_strategies_of_one_name_are_refused_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [
        EntryPoint("dp", "strategies.data:dp", GROUP),
        EntryPoint("tp", "strategies.tensor:tp", GROUP),
    ]
    points.append(EntryPoint("tp", "strategies.pipeline:pp", GROUP))
    monkeypatch.setattr("strategies.registry.entry_points", lambda group: points)
    found = discover()
    assert found["dp"].error is None
    sources = "strategies.tensor:tp and strategies.pipeline:pp"
    assert (
        found["tp"].error == f"{sources} both bring a strategy of this name; uninstall one of them"
    )
    with pytest.raises(
        LayoutError, match=f"tp2: the strategy 'tp' from {sources} could not be loaded"
    ):
        plan_layout("tp2", shape(), LOAD, Topology.uniform(4), found)
