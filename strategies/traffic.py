"""The collectives of one step, worked out from a placement: what the counted bytes are checked
against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from strategies.placement import EMBEDDING, Placement
from strategies.shapes import ModelShape

# What vocabulary-parallel sampling exchanges for one row: the best score of a shard and its token,
# as two float32.
CANDIDATE_BYTES = 8
TOKEN_BYTES = 8
# The projections that are summed over tp where they are cut.
SUMMED = ("self_attn.o_proj", "mlp.down_proj")
# All-reduces through memory that GPUs share: each rank sends its message to all others, every word
# with the number of the call; or each sums a part, and sends the sum to all others; or each sends
# its message as it is, and a flag behind every row.
ONE_SHOT, TWO_SHOT = "one_shot_all_reduce", "two_shot_all_reduce"
FLAGGED = "flagged_all_reduce"


@dataclass(frozen=True, slots=True)
class Traffic:
    """`calls` of one operation over one mesh axis by one rank, `bytes` in all.

    Bytes are message sizes as nccl-tests counts them: the tensor of an all-reduce or a send, the
    gathered output of an all-gather. Sampled tokens go from the last stage to all others by one
    broadcast.
    """

    op: str
    axis: str
    calls: int
    bytes: int


def bus_factor(op: str, ranks: int) -> float:
    """Bytes that cross each link, as a multiple of the message: PERFORMANCE.md of nccl-tests.

    The message is the tensor of an all-reduce or a send, what an all-gather makes, what a
    reduce-scatter takes. Where each word has the number of its call half of the bytes are values.
    """
    if op == FLAGGED:
        return float(ranks - 1)
    if op == ONE_SHOT:
        return 2.0 * (ranks - 1)
    if op == TWO_SHOT:
        return 4 * (ranks - 1) / ranks
    if op == "all_reduce":
        return 2 * (ranks - 1) / ranks
    return (ranks - 1) / ranks if op in ("all_gather", "reduce_scatter") else 1.0


def sent_factor(op: str, ranks: int) -> float | None:
    """Bytes that a rank sends, mean over the ranks of its group, as a multiple of the message; None
    for an operation that is not known here.

    It is the same along a ring and a tree: an all-reduce sends 2(n-1) messages in all, an
    all-gather, a reduce-scatter and a broadcast n-1. The message is that of `bus_factor`.
    """
    if op in ("all_reduce", "all_gather", "reduce_scatter"):
        return bus_factor(op, ranks)
    return {"broadcast": (ranks - 1) / ranks, "send": 1.0, "recv": 0.0}.get(op)


def decode_step(
    placement: Placement, model: ModelShape, rank: int, batch: int, dtype_bytes: int
) -> tuple[Traffic, ...]:
    """Collectives of `rank` while one micro-batch of `batch` requests makes one token each."""
    return step(placement, model, rank, tokens=batch, sampled=batch, dtype_bytes=dtype_bytes)


def step(
    placement: Placement, model: ModelShape, rank: int, tokens: int, sampled: int, dtype_bytes: int
) -> tuple[Traffic, ...]:
    """Collectives of `rank` for a forward pass over `tokens` tokens of which `sampled` are sampled
    from."""
    hidden = tokens * model.hidden_size * dtype_bytes
    calls: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for one in (
        *_tensor(placement, model, rank, hidden, sampled),
        *_pipeline(placement, rank, hidden, sampled),
    ):
        if one.calls and one.bytes:
            calls[one.op, one.axis] += one.calls
            size[one.op, one.axis] += one.bytes
    return tuple(Traffic(op, axis, calls[op, axis], size[op, axis]) for op, axis in sorted(calls))


def _tensor(
    placement: Placement, model: ModelShape, rank: int, hidden: int, sampled: int
) -> Iterator[Traffic]:
    """What tensor parallelism sends; `hidden`: bytes of the activations between two layers."""
    stages = placement.stages_of(rank)
    layers = sum(len(stage.layers) for stage in stages)
    summed = sum(placement.is_split(f"model.layers.0.{name}.weight", "tp") for name in SUMMED)
    embed = any(stage.embed for stage in stages) and placement.is_split(EMBEDDING, "tp")
    count = layers * summed + embed
    yield Traffic("all_reduce", "tp", count, count * hidden)
    if any(stage.head for stage in stages) and placement.is_split(model.head_name, "tp"):
        gathered = placement.degree("tp") * sampled * CANDIDATE_BYTES
        yield Traffic("all_gather", "tp", 1, gathered)


def _pipeline(placement: Placement, rank: int, hidden: int, sampled: int) -> Iterator[Traffic]:
    """What a pipeline sends: activations to the next stage, sampled tokens back to all."""
    last = placement.degree("pp") - 1
    if last == 0:
        return
    at = placement.coordinates(rank)["pp"]
    if at < last:
        yield Traffic("send", "pp", 1, hidden)
    if at > 0:
        yield Traffic("recv", "pp", 1, hidden)
    yield Traffic("broadcast", "pp", 1, sampled * TOKEN_BYTES)
