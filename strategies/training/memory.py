"""Bytes that training takes on each rank, by what they are for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from strategies.memory import RESERVE_BYTES
from strategies.placement import EMBEDDING, Of, Placement
from strategies.shapes import ModelShape, TrainingLoad
from strategies.training.activations import (
    compute_bytes,
    going_back_bytes,
    head_bytes,
    kept_bytes,
    layer_bytes,
    loss_bytes,
)
from strategies.training.batches import micro_batches

# Bytes of a parameter, of its gradient, and of what AdamW keeps for it: two moments in float32, and
# a float32 copy of a parameter that is in fewer bits (Rajbhandari et al., arXiv:1910.02054, section
# 3.1: 16 bytes a parameter).
KEPT = {"fp32": (4, 4, 8), "mixed": (2, 2, 12)}
BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size
SUB_GROUP = 1_000_000_000  # elements: its sub_group_size, of ZeRO-3
# Elements of the parameters that the engine `torch` updates at a time, one at least: so many
# gradients in float32 exist at once, half a gigabyte, and work for a kernel.
UPDATED = 2**27
FLOAT32 = 4  # bytes


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one rank.

    weights, gradients: in the precision that is computed in. optimizer: its state, and the float32
    copy of the weights. activations: those kept for the backward pass and those worked with.
    buffers: parameters and gradients that are whole only while they are used, buckets, what a
    pipeline receives into, and gradients in float32 for an update. host: bytes in main memory, of
    this rank too. Gradients, activations and buffers are those of the moment that takes the most.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        kept = self.weights + self.gradients + self.optimizer
        return kept + self.activations + self.buffers

    def fits(self, memory_bytes: int) -> bool:
        """Whether a device of so many bytes has room, beside a reserve for contexts and NCCL; True
        where its memory is unknown (0)."""
        return not memory_bytes or self.total <= memory_bytes - RESERVE_BYTES


def training_memory(
    placement: Placement, model: ModelShape, load: TrainingLoad
) -> tuple[TrainingMemory, ...]:
    """What each rank takes in a step. Raises LayoutError where the batch does not divide."""
    return tuple(_of_rank(placement, model, load, rank) for rank in likes(placement))


def fullest(placement: Placement, model: ModelShape, load: TrainingLoad) -> TrainingMemory:
    """What the rank takes that takes the most on its device."""
    return max(training_memory(placement, model, load), key=lambda one: one.total)


def likes(placement: Placement) -> tuple[int, ...]:
    """For each rank the first one that keeps and computes as much: replicas are alike where
    nothing is cut over them."""
    every = (cuts for mapping in placement.cuts.values() for cuts in mapping.values())
    apart = {"pp", *(split.axis for cuts in every for split in cuts)}
    return tuple(
        placement.rank_at({a: at for a, at in placement.coordinates(rank).items() if a in apart})
        for rank in range(placement.num_ranks)
    )


@lru_cache(maxsize=4096)
def _of_rank(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int
) -> TrainingMemory:
    weight, gradient, state = KEPT["fp32" if load.precision == "fp32" else "mixed"]
    kept = {of: kept_elements(placement, model, rank, of) for of in placement.cuts}
    whole = gradient * kept["grads"]
    on_host = _gradients_on_host(placement, load)
    made, activations, buffers = _fullest_moment(
        placement, model, load, rank, 0 if on_host else whole
    )
    _, kept_on_host = kept_bytes(placement, model, load, rank, micro_batches(placement, load))
    memory = TrainingMemory(
        weights=weight * kept["params"],
        gradients=made,
        optimizer=state * kept["optimizer"],
        activations=activations,
        buffers=buffers,
        host=kept_on_host + (whole if on_host else 0),
    )
    return _offloaded(memory, placement, load)


def _gradients_on_host(placement: Placement, load: TrainingLoad) -> bool:
    """Whether gradients lie in main memory: those of what reads them there (ZeRO 2 and 3: Ren et
    al., arXiv:2101.06840, section 4; FSDP2)."""
    if load.offload == "none":
        return False
    return load.offload == "optimizer+params" or placement.option("zero_stage") in ("2", "3")


def _offloaded(memory: TrainingMemory, placement: Placement, load: TrainingLoad) -> TrainingMemory:
    """The same with what lies in main memory moved there: the optimizer's state, and perhaps the
    weights."""
    if load.offload == "none":
        return memory
    stage, takes_weights = placement.option("zero_stage"), load.offload == "optimizer+params"
    host = memory.host + memory.optimizer
    if not stage and not takes_weights and load.precision == "fp32":
        host += memory.optimizer // 2  # a copy of the weights, as large as one of two moments
    if not takes_weights:
        return replace(memory, optimizer=0, host=host)
    return replace(memory, weights=0, optimizer=0, host=host + memory.weights)


def kept_elements(placement: Placement, model: ModelShape, rank: int, of: Of) -> int:
    """Elements of all parameters, gradients or optimizer states that `rank` keeps."""
    return sum(
        elements(placement.shard(name, shape, rank, of=of))
        for name, shape in model.parameters()
        if placement.holds(name, rank, model)
    )


def elements(box: Sequence[slice]) -> int:
    """Elements of a slice of a tensor."""
    return math.prod(part.stop - part.start for part in box)


class _Moment(NamedTuple):
    """Bytes that are there at once, beside what is there always."""

    gradients: int
    activations: int
    buffers: int


def _fullest_moment(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int, made: int
) -> _Moment:
    """The moment of a step that takes the most: at the loss, going back through the first layer or
    the last, in between which as much is made as goes, or at the end. made: bytes of gradients on
    the device once all are there."""
    kept, _ = kept_bytes(placement, model, load, rank, micro_batches(placement, load))
    buffers = _Buffers.of(placement, model, load, rank)
    back = going_back_bytes(placement, model, load)
    one = layer_bytes(placement, model, load, load.activation_checkpointing)
    loss, head = (of(placement, model, load, rank) for of in (loss_bytes, head_bytes))
    so_far = _gradients_so_far(placement, model, load, rank, made)
    moments = (
        _Moment(so_far[0], kept + max(loss, head), buffers.loss),
        _Moment(so_far[1], kept + back, buffers.layer),
        _Moment(so_far[2], one + back, buffers.layer),
        _Moment(made, 0, buffers.end),
    )
    return max(moments, key=sum)


def _begins_without_gradients(placement: Placement, load: TrainingLoad) -> bool:
    """Whether no gradients are there where the most activations are: one micro-batch makes a step,
    and those of the step before are gone. DDP keeps its buckets. Of DeepSpeed and of pipelines
    nothing is left out."""
    if load.keeps_gradients or placement.option("zero_stage") or placement.degree("pp") > 1:
        return False
    is_ddp = placement.degree("dp") > 1 and not _is_fsdp(placement)
    return micro_batches(placement, load) == 1 and not is_ddp


def _gradients_so_far(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int, made: int
) -> tuple[int, int, int]:
    """Bytes of gradients at the loss, going back through the first layer and through the last. made:
    of all. FSDP2 has the head's and two layers' among its buffers."""
    if not _begins_without_gradients(placement, load):
        return made, made, made
    if _is_fsdp(placement):
        return 0, 0, made
    c, whole = compute_bytes(load), whole_elements(placement, model, rank)
    still_to_come = 0 if model.tie_embeddings else c * whole[EMBEDDING]
    return 0, c * (whole[model.head_name] + _largest_layer(whole)), made - still_to_come


def _is_fsdp(placement: Placement) -> bool:
    """Whether FSDP2 keeps the parameters: those that are cut over replicas, and copies beside tp,
    where it is over one rank."""
    return is_gathered(placement) or all(placement.degree(axis) > 1 for axis in ("dp", "tp"))


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Bytes of what a rank has only while it is sent, received or computed with: at the loss, going
    back through a layer, and at the end."""

    loss: int
    layer: int
    end: int

    @classmethod
    def of(cls, placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> _Buffers:
        """Those of `rank`."""
        c, whole = compute_bytes(load), whole_elements(placement, model, rank)
        received = _received_bytes(placement, model, load, rank)
        stage = placement.option("zero_stage")
        if stage:
            bucket = min(BUCKET, sum(whole.values()))
            size = c * (bucket + (_most_gathered(whole) if stage == "3" else 0))
            # DeepSpeed updates from a float32 copy of the gradients of its part.
            part = -(-sum(whole.values()) // placement.num_ranks)
            copied = FLOAT32 * (min(part, SUB_GROUP) if stage == "3" else part)
            return cls(size, size, c * bucket + copied)
        if is_gathered(placement) and placement.degree("pp") > 1:
            # gathered until the last micro-batch is back
            size = 2 * c * sum(whole.values()) + received
            return cls(size, size, size)
        if _is_fsdp(placement) and placement.degree("pp") == 1:
            return cls._of_fsdp(whole, c, model.head_name)
        # DDP keeps gradients in its buckets alone.
        waiting, summed = _tied_bytes(placement, model, load, whole)
        last = max(summed, _copied_bytes(placement, model, load, rank))
        return cls(received, received + waiting, received + last)

    @classmethod
    def _of_fsdp(cls, whole: Mapping[str, int], c: int, head: str) -> _Buffers:
        """What is in no layer stays gathered, and its gradients come first and last; of layers
        there are two at a time, as the next one is fetched and the one before scattered
        meanwhile."""
        apart = sum(size for group, size in whole.items() if not group.isdigit())
        going_back = apart + whole.get(head, 0) + 4 * _largest_layer(whole)
        return cls(c * apart, c * going_back, c * 2 * apart)


def whole_elements(placement: Placement, model: ModelShape, rank: int) -> dict[str, int]:
    """The number of a layer, or the name of another parameter -> elements that `rank` computes
    with."""
    found: Counter[str] = Counter()
    for name, shape in model.parameters():
        if placement.holds(name, rank, model):
            group = name.split(".")[2] if name.startswith("model.layers.") else name
            found[group] += elements(placement.shard(name, shape, rank, stored=False))
    return dict(found)


def is_gathered(placement: Placement) -> bool:
    """Whether parameters are cut along an axis that shares out the batch, so that a rank gathers
    them before it computes."""
    shared = placement.tokens.get("batch", ())
    return any(split.axis in shared for cuts in placement.params.values() for split in cuts)


def _largest_layer(whole: Mapping[str, int]) -> int:
    return max((size for group, size in whole.items() if group.isdigit()), default=0)


def _tied_bytes(
    placement: Placement, model: ModelShape, load: TrainingLoad, whole: Mapping[str, int]
) -> tuple[int, int]:
    """Bytes of the gradients of a tied matrix beside the one that is kept: as the head's, it waits
    for that as the embedding's, and then there are both and their sum. In the first micro-batch
    one of these is what is kept."""
    if not model.tie_embeddings or placement.degree("pp") > 1:
        return 0, 0
    each = compute_bytes(load) * whole[model.head_name]
    kept = micro_batches(placement, load) == 1
    return (0 if kept else each), (2 if kept else 3) * each


def _copied_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes of the gradients in float32 from which copies of weights are updated, UPDATED elements
    at a time. FSDP2 has more than that whole where its way back ends."""
    if load.precision == "fp32" or load.offload != "none":
        return 0
    sizes = [
        elements(placement.shard(name, shape, rank, of="grads"))
        for name, shape in model.parameters()
        if placement.holds(name, rank, model)
    ]
    return FLOAT32 * min(sum(sizes), max(UPDATED, *sizes))


def _most_gathered(whole: Mapping[str, int]) -> int:
    """Two layers, as the next one is fetched meanwhile, or the embedding or the head."""
    return max(2 * size if group.isdigit() else size for group, size in whole.items())


def _received_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes that a pipeline receives into: torch has a buffer for each micro-batch."""
    if placement.degree("pp") == 1:
        return 0
    ends = sum(2 - stage.embed - stage.head for stage in placement.stages_of(rank))
    hidden = load.micro_batch_size * load.seq_len * model.hidden_size * compute_bytes(load)
    return ends * micro_batches(placement, load) * hidden // placement.degree("tp")
