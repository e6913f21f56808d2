"""Bytes that training takes on each rank, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from strategies.memory import RESERVE_BYTES
from strategies.placement import Placement
from strategies.shapes import ModelShape, TrainingLoad
from strategies.training.elements import kept_elements
from strategies.training.host import HostMemory, host_memory, is_on_host
from strategies.training.moments import fullest_moment

# Bytes of a parameter, of its gradient, and of what AdamW keeps for it: two moments in float32, and
# a float32 copy of a parameter that is in fewer bits (Rajbhandari et al., arXiv:1910.02054, section
# 3.1: 16 bytes a parameter).
KEPT = {"fp32": (4, 4, 8), "mixed": (2, 2, 12)}
# DeepSpeed's ZeRO copies what is float32 already too (`single_partition_of_fp32_groups`,
# `fp32_partitioned_groups_flat`).
ZERO_STATE = 12


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one rank.

    weights, gradients: in the precision that is computed in. optimizer: its state, and the float32
    copy of the weights. activations: those kept for the backward pass and those worked with.
    buffers: parameters and gradients that are whole only while they are used, buckets, what a
    pipeline receives into, and what an update needs. host: what lies in main memory
    of this rank. Gradients, activations and buffers are those of the moment that takes the most.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: HostMemory = field(default_factory=HostMemory)

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
    if placement.option("zero_stage"):
        state = ZERO_STATE
    kept = {of: kept_elements(placement, model, rank, of) for of in placement.cuts}
    whole = gradient * kept["grads"]
    on_host = is_on_host(placement, load)
    made, activations, buffers = fullest_moment(
        placement, model, load, rank, 0 if on_host else whole
    )
    return TrainingMemory(
        weights=0 if load.offload == "optimizer+params" else weight * kept["params"],
        gradients=made,
        optimizer=0 if load.offload != "none" else state * kept["optimizer"],
        activations=activations,
        buffers=buffers,
        host=host_memory(placement, model, load, rank),
    )
