"""Bytes that training takes on each rank, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from strategies.memory import RESERVE_BYTES
from strategies.placement import Placement
from strategies.shapes import ModelShape, TrainingLoad
from strategies.training.activations import kept_bytes
from strategies.training.batches import micro_batches
from strategies.training.elements import kept_elements
from strategies.training.moments import fullest_moment

# Bytes of a parameter, of its gradient, and of what AdamW keeps for it: two moments in float32, and
# a float32 copy of a parameter that is in fewer bits (Rajbhandari et al., arXiv:1910.02054, section
# 3.1: 16 bytes a parameter).
KEPT = {"fp32": (4, 4, 8), "mixed": (2, 2, 12)}


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one rank.

    weights, gradients: in the precision that is computed in. optimizer: its state, and the float32
    copy of the weights. activations: those kept for the backward pass and those worked with.
    buffers: parameters and gradients that are whole only while they are used, buckets, what a
    pipeline receives into, and what an update needs. host: bytes in main memory, of
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
    made, activations, buffers = fullest_moment(
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
