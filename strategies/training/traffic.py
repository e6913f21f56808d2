"""What an optimizer step communicates, worked out from a placement: what the counted bytes are
checked against.

As torch (DDP, FSDP2, DTensor with sequence parallelism, pipelining) and DeepSpeed do it. The norm
of the gradient and the mean of the loss are not counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from strategies.placement import EMBEDDING, Placement
from strategies.shapes import ModelShape, TrainingLoad
from strategies.traffic import SUMMED
from strategies.training.activations import FLOAT, compute_bytes
from strategies.training.batches import micro_batches
from strategies.training.elements import elements, is_gathered, kept_elements

ALIGNMENT = 2  # elements: DeepSpeed's flat buffers are multiples of this times the ranks
LOSS_SUMS = 3  # of a vocabulary that is cut: maximum, sum and the label's logit, for each token


@dataclass(frozen=True, slots=True)
class TrainingTraffic:
    """One operation over one mesh axis by one rank in an optimizer step: `bytes` in all, in `calls`
    calls; None where the engine puts tensors into buckets of its own.

    Bytes are message sizes as nccl-tests counts them: the tensor of an all-reduce or a send, what
    an all-gather makes, what a reduce-scatter takes.
    """

    op: str
    axis: str
    calls: int | None
    bytes: int


@dataclass(frozen=True, slots=True)
class _Step:
    """What a rank does in an optimizer step. count: its micro-batches."""

    placement: Placement
    model: ModelShape
    load: TrainingLoad
    rank: int
    count: int

    @property
    def width(self) -> int:
        """Bytes of an element of activations and gradients."""
        return compute_bytes(self.load)

    @property
    def hidden(self) -> int:
        """Bytes of the activations of one micro-batch between two layers, on all ranks of tp."""
        return self.tokens * self.model.hidden_size * self.width

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.load.micro_batch_size * self.load.seq_len

    @property
    def layers(self) -> int:
        """Layers of the rank."""
        return sum(len(stage.layers) for stage in self.placement.stages_of(self.rank))

    def has(self, end: str) -> bool:
        """Whether a stage of the rank has the `embed` or the `head`."""
        return any(getattr(stage, end) for stage in self.placement.stages_of(self.rank))


def training_traffic(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int
) -> tuple[TrainingTraffic, ...]:
    """The collectives of `rank` in an optimizer step. Raises LayoutError where the batch does not
    divide."""
    step = _Step(placement, model, load, rank, micro_batches(placement, load))
    found: defaultdict[tuple[str, str], list[TrainingTraffic]] = defaultdict(list)
    for one in (*_replicas(step), *_tensor(step), *_pipeline(step)):
        if one.bytes:
            found[one.op, one.axis].append(one)
    return tuple(_joined(found[key]) for key in sorted(found))


def _joined(parts: list[TrainingTraffic]) -> TrainingTraffic:
    calls = [one.calls for one in parts if one.calls is not None]
    number = sum(calls) if len(calls) == len(parts) else None
    return TrainingTraffic(parts[0].op, parts[0].axis, number, sum(one.bytes for one in parts))


# -- over replicas


def _replicas(step: _Step) -> Iterator[TrainingTraffic]:
    """What replicas exchange: parameters that are cut over them, and gradients."""
    if step.placement.num_ranks == 1:
        return
    if step.placement.option("zero_stage"):
        yield from _zero(step, int(step.placement.option("zero_stage") or 0))
    elif is_gathered(step.placement):
        yield from _fsdp(step)
    else:
        kept = kept_elements(step.placement, step.model, step.rank, "grads")
        yield from _copies(step, kept * step.width, None)


def _copies(step: _Step, size: int, calls: int | None) -> Iterator[TrainingTraffic]:
    """Gradients are summed over the replicas that keep the same, once a step (Li et al.,
    arXiv:2006.15704, section 3.2.4)."""
    copying = [axis for axis in _batch_axes(step.placement) if not _stores(step.placement, axis)]
    if copying:
        yield TrainingTraffic("all_reduce", "+".join(copying), calls, size)


def _fsdp(step: _Step) -> Iterator[TrainingTraffic]:
    """`fully_shard` on each layer and on what is left of the stage: a layer is gathered forward and
    backward, the rest once, and gradients are scattered after each micro-batch. A pipeline keeps
    what it gathered to go back with, and scatters at the end."""
    storing = [axis for axis in _batch_axes(step.placement) if _stores(step.placement, axis)]
    axis = "+".join(storing)
    ranks = math.prod(step.placement.degree(one) for one in storing)
    layer, apart = _padded(step, ranks)
    groups = step.layers + (apart > 0)
    piped = step.placement.degree("pp") > 1
    gathers = step.count + 1 if piped else 2 * step.count
    once = 1 if piped else step.count
    yield TrainingTraffic(
        "all_gather",
        axis,
        gathers * step.layers + once * (apart > 0),
        step.width * (gathers * layer + once * apart),
    )
    whole = step.width * (layer + apart)
    yield TrainingTraffic("reduce_scatter", axis, once * groups, once * whole)
    yield from _copies(step, whole // ranks, groups)


def _padded(step: _Step, ranks: int) -> tuple[int, int]:
    """Elements of the rank's layers, and of what it has beside, with rows padded to a multiple of
    `ranks`."""
    layers = apart = 0
    for name, shape in step.model.parameters():
        if step.placement.holds(name, step.rank, step.model):
            box = step.placement.shard(name, shape, step.rank, stored=False)
            rows, *others = (part.stop - part.start for part in box)
            size = -(-rows // ranks) * ranks * math.prod(others)
            is_layer = name.startswith("model.layers.")
            layers, apart = layers + size * is_layer, apart + size * (not is_layer)
    return layers, apart


def _zero(step: _Step, stage: int) -> Iterator[TrainingTraffic]:
    """DeepSpeed's ZeRO (Rajbhandari et al., arXiv:1910.02054, section 7). Its stages 1 and 2 sum
    whole buckets, where the paper scatters; stage 1 once a step, stage 2, which keeps no more than
    its part, after each micro-batch. Stage 3 gathers forward and backward, and scatters."""
    ranks, width = step.placement.degree("dp"), step.width
    sizes = [math.prod(shape) for _, shape in step.model.parameters()]
    if stage == 3:
        whole = width * sum(-(-size // ranks) * ranks for size in sizes)
        yield TrainingTraffic("all_gather", "dp", None, 2 * step.count * whole)
        yield TrainingTraffic("reduce_scatter", "dp", None, step.count * whole)
        return
    unit = ALIGNMENT * ranks
    sums = 1 if stage == 1 else step.count
    yield TrainingTraffic("all_reduce", "dp", None, width * sums * sum(sizes))
    yield TrainingTraffic("all_gather", "dp", 1, width * -(-sum(sizes) // unit) * unit)


def _batch_axes(placement: Placement) -> tuple[str, ...]:
    """The axes of more than one rank that share out the batch."""
    return tuple(axis for axis in placement.tokens.get("batch", ()) if placement.degree(axis) > 1)


def _stores(placement: Placement, axis: str) -> bool:
    return any(split.axis == axis for cuts in placement.params.values() for split in cuts)


# -- over tp


def _tensor(step: _Step) -> Iterator[TrainingTraffic]:
    """Tensor parallelism with sequence parallelism (Korthikanti et al., arXiv:2205.05198, section
    4.2.2): before each block of a layer its input is gathered, behind it its output is scattered,
    and the reverse on the way back. What is recomputed is communicated again, but for the last
    output of a layer, which nothing needs; a layer that is compiled is recomputed as a whole."""
    placement = step.placement
    names = (f"model.layers.0.{name}.weight" for name in SUMMED)
    blocks = step.layers * sum(placement.is_split(name, "tp") for name in names)
    embed = step.has("embed") and placement.is_split(EMBEDDING, "tp")
    head = step.has("head") and placement.is_split(step.model.head_name, "tp")
    again = step.load.activation_checkpointing != "off"
    ends = embed + head
    gathers = step.count * (2 * blocks + ends + again * blocks)
    redone = blocks if step.load.compiles else max(blocks - step.layers, 0)
    scatters = step.count * (2 * blocks + ends + again * redone)
    yield TrainingTraffic("all_gather", "tp", gathers, gathers * step.hidden)
    yield TrainingTraffic("reduce_scatter", "tp", scatters, scatters * step.hidden)
    sums = LOSS_SUMS * step.count * head
    yield TrainingTraffic("all_reduce", "tp", sums, sums * step.tokens * FLOAT)
    yield from _norms(step)


def _norms(step: _Step) -> Iterator[TrainingTraffic]:
    """Every rank of tp has a part of the tokens, and so of the gradient of a parameter that is
    whole: these are summed, each by itself, before gradients are exchanged."""
    placement = step.placement
    if placement.degree("tp") == 1:
        return
    sizes = [
        elements(placement.shard(name, shape, step.rank, stored=False))
        for name, shape in step.model.parameters()
        if placement.holds(name, step.rank, step.model) and not placement.is_split(name, "tp")
    ]
    often = is_gathered(placement) and placement.degree("pp") == 1
    times = step.count if often else 1
    yield TrainingTraffic("all_reduce", "tp", times * len(sizes), times * sum(sizes) * step.width)


# -- over pp


def _pipeline(step: _Step) -> Iterator[TrainingTraffic]:
    """Activations go to the next stage and their gradients back, each rank of tp its part; a tied
    embedding that two ranks have is summed."""
    placement = step.placement
    if placement.degree("pp") == 1:
        return
    stages = placement.stages_of(step.rank)
    calls = step.count * sum(2 - stage.embed - stage.head for stage in stages)
    size = calls * step.hidden // placement.degree("tp")
    yield TrainingTraffic("send", "pp", calls, size)
    yield TrainingTraffic("recv", "pp", calls, size)
    if step.model.tie_embeddings and step.has("embed") != step.has("head"):
        shape = (step.model.vocab_size, step.model.hidden_size)
        table = elements(placement.shard(EMBEDDING, shape, step.rank, of="grads"))
        yield TrainingTraffic("all_reduce", "pp", 1, table * step.width)
