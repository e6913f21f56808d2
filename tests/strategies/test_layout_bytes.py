"""Bytes that a placement takes on a rank and sends in a step; layers dealt out by weight."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts_inputs import PROPERTY, layouts, planned, shape

from strategies import ModelShape, Placement, balance, memory, traffic
from strategies.precision import Precision

BF16 = Precision("bfloat16")


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


def test_tensor_parallelism_needs_two_all_reduces_a_layer_and_one_for_the_embedding() -> None:
    model = shape()
    found = {t.op: t for t in traffic.decode_step(planned("tp2"), model, 0, batch=3, dtype_bytes=2)}
    assert found["all_reduce"].calls == 2 * model.num_layers + 1
    assert found["all_reduce"].bytes == (2 * model.num_layers + 1) * 3 * 32 * 2
    assert found["all_gather"].bytes == 3 * 2 * traffic.CANDIDATE_BYTES


def test_weights_of_all_ranks_add_up_where_nothing_is_replicated() -> None:
    model = shape(tie_embeddings=False)
    whole = memory.weight_bytes(Placement.single(model), model, 0, BF16)
    assert whole == 2 * model.num_parameters
    assert sum(memory.weight_bytes(planned("pp3"), model, rank, BF16) for rank in range(3)) == whole
    assert (
        sum(memory.weight_bytes(planned("dp2"), model, rank, BF16) for rank in range(2))
        == 2 * whole
    )
    assert (
        sum(memory.weight_bytes(planned("dp4zero3"), model, rank, BF16) for rank in range(4))
        == whole
    )


def test_kv_of_a_rank_is_its_layers_and_heads() -> None:
    model = shape()
    assert memory.kv_bytes_per_token(Placement.single(model), model, 0, BF16) == 2 * 6 * 4 * 4 * 2
    assert memory.kv_bytes_per_token(planned("tp2pp2"), model, 0, BF16) == 2 * 3 * 2 * 4 * 2
    assert memory.kv_bytes_per_token(planned("dp2"), model, 0, BF16) == 2 * 6 * 4 * 4 * 2


def test_zero_needs_room_for_the_layers_that_it_gathers() -> None:
    """Two layers, or the embedding where that is more; of four ranks, three quarters come from
    others."""
    model = shape(tie_embeddings=False)
    layer = sum(math.prod(dims) for _, dims in model.layer_parameters())
    most = max(2 * layer, model.vocab_size * model.hidden_size)
    assert memory.gathered_bytes(planned("dp4"), model, 0, BF16) == 0
    assert memory.gathered_bytes(planned("dp4zero3"), model, 0, BF16) == pytest.approx(
        2 * most * 3 / 4, rel=0.02
    )


def test_bus_factors_are_those_of_nccl_tests() -> None:
    factors = {
        op: traffic.bus_factor(op, 4)
        for op in ("all_reduce", "all_gather", "reduce_scatter", "send", "broadcast")
    }
    assert factors == {
        "all_reduce": 1.5,
        "all_gather": 0.75,
        "reduce_scatter": 0.75,
        "send": 1.0,
        "broadcast": 1.0,
    }


def test_a_group_sends_as_much_along_a_ring_as_along_a_tree() -> None:
    """Messages that the 4 ranks of a group send in all: 2(n-1) for an all-reduce, n-1 for the
    others, and one between two stages."""
    sent = {
        op: 4 * (traffic.sent_factor(op, 4) or 0)
        for op in ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
    }
    assert sent == {"all_reduce": 6, "all_gather": 3, "reduce_scatter": 3, "broadcast": 3}
    assert (traffic.sent_factor("send", 2), traffic.sent_factor("recv", 2)) == (1, 0)
    assert traffic.sent_factor("all_to_all", 4) is None
