"""Bytes that training takes in main memory, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from strategies.placement import Placement
from strategies.shapes import ModelShape, TrainingLoad
from strategies.training.activations import compute_bytes, kept_bytes
from strategies.training.batches import micro_batches
from strategies.training.elements import kept_elements, kept_sizes, largest_parameter
from strategies.training.moments import FLOAT32, UPDATED, sub_group

# What a process that drives a GPU has resident before it trains: Python, torch, CUDA and NCCL. On
# two H200, layouts that keep nothing in main memory had 2.1 to 2.4 GB.
PROCESS_BYTES = 3 * 2**30
# Of main memory; past it Ray ends workers, and the system and the driver of GPUs need the rest.
USABLE = 0.95


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of one rank that lie in main memory, on top of what its process takes.

    optimizer: the moments, and the weights in float32. buffers: what is there only while it is
    moved or updated, and what ZeRO keeps for that. At its most, which is in an update: when all is
    made, before the first one, the moments are not there yet.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    buffers: int = 0

    @property
    def total(self) -> int:
        """Bytes in main memory."""
        return sum(getattr(self, field.name) for field in fields(self))


def host_memory(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int
) -> HostMemory:
    """What `rank` takes there in a step."""
    kept = _activations(placement, model, load, rank)
    if load.offload == "none":
        return HostMemory(activations=kept)
    if placement.option("zero_stage"):
        weights, gradients, buffers = _of_zero(placement, model, load, rank)
    else:
        weights, gradients, buffers = _of_torch(placement, model, load, rank)
    part = kept_elements(placement, model, rank, "optimizer")
    # Weights that are in float32 there already have no copy.
    has_copy = not (weights and load.precision == "fp32" and not placement.option("zero_stage"))
    state = (3 if has_copy else 2) * FLOAT32 * part
    return HostMemory(weights, gradients, state, kept, buffers)


def is_on_host(placement: Placement, load: TrainingLoad) -> bool:
    """Whether gradients lie in main memory alone: those of what reads them there (ZeRO 2 and 3:
    Ren et al., arXiv:2101.06840, section 4; FSDP2)."""
    if load.offload == "none":
        return False
    return load.offload == "optimizer+params" or placement.option("zero_stage") in ("2", "3")


def _activations(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes of the inputs of layers, each of which is pinned by itself."""
    _, kept = kept_bytes(placement, model, load, rank, micro_batches(placement, load))
    tokens = load.micro_batch_size * load.seq_len
    each = compute_bytes(load) * tokens * model.hidden_size // placement.degree("tp")
    return kept // each * _pinned(each)


def _of_zero(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int
) -> tuple[int, int, int]:
    """Weights, gradients and buffers of DeepSpeed. It always steps from gradients in float32, which
    are there from the start. ZeRO-3 sums them there too, compares them all with infinity in fp16,
    and rounds the weights of a sub-group before they go back to the device. ZeRO 2 sums others, of
    the weights' dtype, where there is more than one micro-batch. 1 and 2 keep rounded weights."""
    stage, c = placement.option("zero_stage"), compute_bytes(load)
    part = kept_elements(placement, model, rank, "optimizer")
    gradients = FLOAT32 * part
    if stage == "3":
        rounded = 0 if load.precision == "fp32" else c * sub_group(placement, model)
        compared = (FLOAT32 + 1) * part if load.precision == "fp16" else 0
        weights = c * part if load.offload == "optimizer+params" else 0
        return weights, gradients, max(rounded, compared)
    if stage == "2" and micro_batches(placement, load) > 1:
        gradients += c * part
    return 0, gradients, c * (part + largest_parameter(model))


def _of_torch(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int
) -> tuple[int, int, int]:
    """Weights, gradients and buffers of the engine `torch`: those in float32 of UPDATED elements
    are there at once, and pinned, in the weights' dtype, what comes from a device and goes back.
    FSDP2 pins each parameter by itself, and torch takes a power of two for it; so it does for each
    gradient."""
    sizes, c = list(kept_sizes(placement, model, rank, "optimizer")), compute_bytes(load)
    elements = min(sum(sizes), max(UPDATED, *sizes))
    updated = FLOAT32 * elements
    if load.offload != "optimizer+params":
        return 0, 0, _pinned(c * elements) + (0 if load.precision == "fp32" else updated)
    weights, gradients = (
        sum(_pinned(c * size) for size in kept_sizes(placement, model, rank, of))
        for of in ("params", "grads")
    )
    return weights, gradients, 0 if load.precision == "fp32" else updated


def _pinned(size: int) -> int:
    """Bytes that torch pins for so many (c10::llvm::PowerOf2Ceil in CachingHostAllocator.h)."""
    return 1 << (size - 1).bit_length()
