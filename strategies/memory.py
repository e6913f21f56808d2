"""Bytes a placement takes on each rank, and whether they fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from strategies.placement import Placement, needs
from strategies.precision import Precision
from strategies.shapes import ModelShape

# Kept free of weights and KV on a GPU: the CUDA context, buffers of NCCL and of other all-reduces
# (34 MB at most), graphs and fragmentation.
RESERVE_BYTES = 3 << 30
# What a GPU holds beside weights, KV and activations while it serves, all of the above: the mean of
# six layouts on two H200 (tests/orchestrator/test_predicted_memory.py). More than is kept free, for
# what is left of a device beyond UTILIZATION is free too.
OVERHEAD_BYTES = 4 << 30
# Share of a device's memory that an engine may plan with.
UTILIZATION = 0.92


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes on the fullest rank. `kv_tokens` is what one replica can hold at once; -1 where memory
    is unknown."""

    weights: int
    kv_per_token: int
    workspace: int
    available: int
    kv_tokens: int

    def holds(self, tokens: int) -> bool:
        """Whether one replica can hold `tokens` tokens at once; True where memory is unknown."""
        return self.kv_tokens < 0 or self.kv_tokens >= tokens


@lru_cache(maxsize=4096)  # the same of each kind of GPU that a placement is looked at on
def weight_bytes(
    placement: Placement,
    model: ModelShape,
    rank: int,
    precision: Precision,
    stored: bool = True,
    phase: str | None = None,
) -> int:
    """Bytes of parameters on `rank`; with stored=False of those that it computes with, though
    others keep a part of them; with a phase in the form alone that this reads."""

    def sizes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _sizes(placement.shard(name, shape, rank, stored=stored))

    stages = placement.stages_of(rank)
    return sum(
        precision.bytes_of(model, name, sizes(name, shape), phase)
        for name, shape in model.parameters()
        if needs(stages, name, model)
    )


def _sizes(slices: Sequence[slice]) -> tuple[int, ...]:
    return tuple(_length(part) for part in slices)


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


def kv_heads(placement: Placement, model: ModelShape, rank: int) -> int:
    """KV heads whose cache `rank` holds."""
    shape = (model.num_kv_heads * model.head_dim, model.hidden_size)
    rows = placement.shard("model.layers.0.self_attn.k_proj.weight", shape, rank, stored=False)[0]
    return _length(rows) // model.head_dim


def window_of(model: ModelShape, layer: int) -> int | None:
    """Tokens that attention of `layer` sees, the newest one included; None: all."""
    slides = not model.sliding_layers or model.sliding_layers[layer]
    return model.sliding_window if slides else None


def kv_bytes_per_token(
    placement: Placement, model: ModelShape, rank: int, precision: Precision
) -> int:
    """Bytes of keys and values on `rank` for one token: 2 x layers x KV heads x head_dim x the
    cache's dtype."""
    layers = sum(len(stage.layers) for stage in placement.stages_of(rank))
    return 2 * layers * kv_heads(placement, model, rank) * model.head_dim * precision.kv_bytes


def workspace_bytes(
    placement: Placement, model: ModelShape, rank: int, precision: Precision, tokens: int
) -> int:
    """Bytes of activations of one forward pass over `tokens` tokens: residual stream, QKV, both
    halves of the MLP."""
    shape = (model.intermediate_size, model.hidden_size)
    mlp = placement.shard("model.layers.0.mlp.gate_proj.weight", shape, rank, stored=False)[0]
    heads = model.num_heads * model.head_dim
    elements = 4 * model.hidden_size + 3 * heads + 3 * _length(mlp)
    return tokens * precision.dtype_bytes * elements


def gathered_bytes(placement: Placement, model: ModelShape, rank: int, precision: Precision) -> int:
    """Bytes of parameters that `rank` holds whole only while they are used (ZeRO-3): two layers, as
    the next one is fetched meanwhile, or the embedding or head."""
    shared_out = placement.tokens.get("batch", ())
    if not any(split.axis in shared_out for cuts in placement.params.values() for split in cuts):
        return 0
    used: Counter[str] = Counter()
    for name, shape in model.parameters():
        if placement.holds(name, rank, model):
            whole, kept = (
                math.prod(_sizes(placement.shard(name, shape, rank, stored=stored)))
                for stored in (False, True)
            )
            used[name.split(".")[2] if name.startswith("model.layers.") else name] += whole - kept
    return precision.dtype_bytes * max(
        (2 * size if group.isdigit() else size for group, size in used.items()), default=0
    )


def budget(
    placement: Placement,
    model: ModelShape,
    precision: Precision,
    memory_bytes: int,
    prefill_tokens: int,
    looked_at: Sequence[int] | None = None,
) -> Budget:
    """The budget of the rank that can hold the fewest tokens, on devices of `memory_bytes` (0 =
    unknown). looked_at: the ranks that count; None: all of them."""
    alike = placement.degree("dp") > 1 and not any(
        s.axis == "dp" for cuts in placement.params.values() for s in cuts
    )
    everyone = range(placement.num_ranks) if looked_at is None else looked_at
    different = [r for r in everyone if not alike or placement.coordinates(r)["dp"] == 0]
    ranks = [
        _rank_budget(placement, model, rank, precision, memory_bytes, prefill_tokens)
        for rank in different
    ]
    return min(ranks, key=lambda b: (b.kv_tokens, -b.weights))


def _rank_budget(
    placement: Placement,
    model: ModelShape,
    rank: int,
    precision: Precision,
    memory: int,
    tokens: int,
) -> Budget:
    weights = weight_bytes(placement, model, rank, precision)
    per_token = kv_bytes_per_token(placement, model, rank, precision)
    workspace = workspace_bytes(placement, model, rank, precision, tokens)
    workspace += gathered_bytes(placement, model, rank, precision)
    if not memory:
        return Budget(weights, per_token, workspace, 0, -1)
    free = int(memory * UTILIZATION) - RESERVE_BYTES - weights - workspace
    return Budget(
        weights, per_token, workspace, memory, max(free, 0) // per_token if per_token else -1
    )
