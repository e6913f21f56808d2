"""The moment of an optimizer step that takes the most, of all that is not there always."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from strategies.placement import EMBEDDING, Placement
from strategies.shapes import ModelShape, TrainingLoad
from strategies.training.activations import (
    compute_bytes,
    going_back_bytes,
    head_bytes,
    kept_bytes,
    layer_bytes,
    logits,
    loss_bytes,
)
from strategies.training.batches import micro_batches
from strategies.training.elements import (
    is_fsdp,
    is_gathered,
    kept_sizes,
    largest_parameter,
    whole_elements,
)

BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size
SUB_GROUP = 1_000_000_000  # elements: its sub_group_size, of ZeRO-3
LIVE = 1_000_000_000  # elements: its stage3_max_live_parameters
NORMED = 250_000_000  # elements of a gradient of which ZeRO-3 works out the norm at a time
# Elements of the parameters that the engine `torch` updates at a time, one parameter at least: so
# many gradients in float32 exist at once, half a gigabyte, and work for a kernel.
UPDATED = 2**27
FLOAT32, FLOAT64 = 4, 8  # bytes


class Moment(NamedTuple):
    """Bytes that are there at once, beside what is there always."""

    gradients: int
    activations: int
    buffers: int


def fullest_moment(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int, made: int
) -> Moment:
    """The moment of a step that takes the most: at the loss, going back through the first layer or
    the last, in between which as much is made as goes, or at the end. made: bytes of gradients on
    the device once all are there."""
    held = _held_bytes(placement, model, load)
    kept, _ = kept_bytes(placement, model, load, rank, micro_batches(placement, load))
    buffers = _Buffers.of(placement, model, load, rank)
    back = going_back_bytes(placement, model, load)
    one = layer_bytes(placement, model, load, load.activation_checkpointing)
    loss, head = (of(placement, model, load, rank) for of in (loss_bytes, head_bytes))
    so_far = _gradients_so_far(placement, model, load, rank, made)
    # Of ZeRO 1, an update has the gradients of the rank's part alone.
    updating = made // placement.num_ranks if placement.option("zero_stage") == "1" else made
    moments = (
        Moment(so_far[0], held + kept + max(loss, head), buffers.loss),
        Moment(so_far[1], held + kept, buffers.largest),
        Moment(so_far[1], held + kept + back, buffers.layer),
        Moment(so_far[2], held + one + back, buffers.layer),
        Moment(updating, held, buffers.end),
    )
    return max(moments, key=sum)


def _held_bytes(placement: Placement, model: ModelShape, load: TrainingLoad) -> int:
    """Bytes of the logits before they are in float32: where DeepSpeed computes, a micro-batch has
    them until it ends, its update included (`_micro_batch` of the engine)."""
    is_held = load.keeps_gradients or placement.option("zero_stage")
    return compute_bytes(load) * logits(placement, model, load) if is_held else 0


def sub_group(placement: Placement, model: ModelShape) -> int:
    """Elements of a rank's part that ZeRO-3 updates at a time, at most: parameters one after
    another until a sub-group is full (`_create_fp16_sub_groups` of stage3.py)."""
    groups = [0]
    for _, shape in model.parameters():
        groups[-1] += -(-math.prod(shape) // placement.num_ranks)
        if groups[-1] >= SUB_GROUP:
            groups.append(0)
    return max(groups)


def _begins_without_gradients(placement: Placement, load: TrainingLoad) -> bool:
    """Whether no gradients are there where the most activations are: one micro-batch makes a step,
    and those of the step before are gone. DDP keeps its buckets. Of DeepSpeed and of pipelines
    nothing is left out."""
    if load.keeps_gradients or placement.option("zero_stage") or placement.degree("pp") > 1:
        return False
    is_ddp = placement.degree("dp") > 1 and not is_fsdp(placement)
    return micro_batches(placement, load) == 1 and not is_ddp


def _gradients_so_far(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int, made: int
) -> tuple[int, int, int]:
    """Bytes of gradients at the loss, going back through the first layer and through the last.
    made: of all. FSDP2 has the first ones among its buffers, and what is in no layer until the
    end."""
    if not _begins_without_gradients(placement, load):
        return made, made, made
    c, whole = compute_bytes(load), whole_elements(placement, model, rank)
    if is_fsdp(placement):
        layers = sum(size for group, size in whole.items() if group.isdigit())
        return 0, 0, made * layers // sum(whole.values())
    still_to_come = 0 if model.tie_embeddings else c * whole[EMBEDDING]
    return 0, c * (whole[model.head_name] + _largest_layer(whole)), made - still_to_come


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Bytes of what a rank has only while it is sent, received or computed with: at the loss, going
    back through a layer, at the end, and when the largest gradient is reduced where that is a
    moment of its own."""

    loss: int
    layer: int
    end: int
    largest: int = 0

    @classmethod
    def of(cls, placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> _Buffers:
        """Those of `rank`."""
        c, whole = compute_bytes(load), whole_elements(placement, model, rank)
        received = _received_bytes(placement, model, load, rank)
        if stage := placement.option("zero_stage"):
            make = cls._of_zero_3 if stage == "3" else cls._of_zero
            return make(placement, model, load, sum(whole.values()))
        if is_gathered(placement) and placement.degree("pp") > 1:
            # gathered until the last micro-batch is back
            size = 2 * c * sum(whole.values()) + received
            return cls(size, size, size)
        updating = _updating_bytes(placement, model, load, rank)
        if is_fsdp(placement) and placement.degree("pp") == 1:
            return cls._of_fsdp(whole, c, model, updating)
        # DDP keeps gradients in its buckets alone.
        waiting, summed = _tied_bytes(placement, model, load, whole)
        return cls(received, received + waiting, received + max(summed, updating))

    @classmethod
    def _of_zero(
        cls, placement: Placement, model: ModelShape, load: TrainingLoad, every: int
    ) -> _Buffers:
        """Of ZeRO 1 and 2 (stage_1_and_2.py). The first gradient makes a bucket (`setup_buckets`),
        which goes when they are reduced: under 2 in every micro-batch, under 1 in the last. What is
        larger waits beside it (`extra_large_param_to_reduce`). Under 2 the rank's part of a
        micro-batch's gradients lies beside the sums of those before (`copy_grads_in_partition`).
        Offloaded, the largest one is there once more (`temp_grad_buffer_for_gpu_offload`), and in
        float64 for its norm. An update has the part's gradients as `_flat_bytes` says."""
        c, accumulates = compute_bytes(load), micro_batches(placement, load) > 1
        is_first, part = placement.option("zero_stage") == "1", -(-every // placement.num_ranks)
        bucket, largest = c * BUCKET, largest_parameter(model)
        loss = bucket if is_first and accumulates else 0
        waiting = c * largest if largest > BUCKET else 0
        if load.offload != "none":
            again = c * largest
            normed = FLOAT64 * min(largest, part)
            layer = again + bucket
            return cls(again + loss, layer, again, layer + waiting + normed)
        layer = bucket + (0 if is_first or not accumulates else c * part)
        return cls(loss, layer, _flat_bytes(load) * part, layer + waiting)

    @classmethod
    def _of_zero_3(
        cls, placement: Placement, model: ModelShape, load: TrainingLoad, every: int
    ) -> _Buffers:
        """Of ZeRO-3 (stage3.py). A bucket is there always; to be scattered, its gradients are
        copied (`reduce_scatter_coalesced`). Parameters are gathered ahead of their use until LIVE
        elements are whole (`__max_n_available_params` of partitioned_param_coordinator.py): each
        module begins to gather more than most use. One rank gathers nothing of what is on its
        device (`_no_gather_coalesced`). Offloaded, a gradient is there in float64 for its norm
        (`_constant_buffered_norm2`). An update has the gradients of a sub-group as `_flat_bytes`
        says."""
        c, largest = compute_bytes(load), largest_parameter(model)
        bucket, gathered = c * BUCKET, c * max(largest, min(LIVE, every))
        if placement.num_ranks == 1 and load.offload != "optimizer+params":
            gathered = 0
        waiting, loss = c * largest if largest > BUCKET else 0, bucket + gathered
        layer = loss + c * min(BUCKET, every)
        if load.offload != "none":
            normed = FLOAT64 * min(NORMED, -(-largest // placement.num_ranks))
            return cls(loss, layer, bucket, loss + waiting + normed)
        end = bucket + _flat_bytes(load) * sub_group(placement, model)
        return cls(loss, layer, end, loss + waiting)

    @classmethod
    def _of_fsdp(
        cls, whole: Mapping[str, int], c: int, model: ModelShape, updating: int
    ) -> _Buffers:
        """What is in no layer stays gathered, and its gradients come first and last, a tied
        matrix's twice, to be summed; of layers there are two at a time, as the next one is fetched
        and the one before scattered meanwhile."""
        apart = sum(size for group, size in whole.items() if not group.isdigit())
        going_back = apart + whole.get(model.head_name, 0) + 4 * _largest_layer(whole)
        last = (4 if model.tie_embeddings else 2) * apart
        return cls(c * apart, c * going_back, max(c * last, updating))


def _flat_bytes(load: TrainingLoad) -> int:
    """Bytes that DeepSpeed has of a gradient in an update beside what is kept: in a flat copy, and
    in one that is float32 where that is not."""
    return compute_bytes(load) + (0 if load.precision == "fp32" else FLOAT32)


def _largest_layer(whole: Mapping[str, int]) -> int:
    return max((size for group, size in whole.items() if group.isdigit()), default=0)


def _tied_bytes(
    placement: Placement, model: ModelShape, load: TrainingLoad, whole: Mapping[str, int]
) -> tuple[int, int]:
    """Bytes of the gradients of a tied matrix beside the one that is kept: the head's, which waits
    for the embedding's; then both and their sum, which is the one that is kept where there was none
    before."""
    if not model.tie_embeddings or placement.degree("pp") > 1:
        return 0, 0
    each = compute_bytes(load) * whole[model.head_name]
    is_first = _begins_without_gradients(placement, load)
    return (0 if is_first else each), (2 if is_first else 3) * each


def _updating_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes of an update on the device: the gradients in float32 of UPDATED elements, of copies of
    weights; and two tensors as large as a parameter where several kernels make it."""
    if load.offload != "none":
        return 0
    sizes = list(kept_sizes(placement, model, rank, "grads"))
    copied = 0 if load.precision == "fp32" else min(sum(sizes), max(UPDATED, *sizes))
    return FLOAT32 * (copied + (0 if load.fuses_updates else 2 * max(sizes)))


def _received_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes that a pipeline receives into: torch has a buffer for each micro-batch."""
    if placement.degree("pp") == 1:
        return 0
    ends = sum(2 - stage.embed - stage.head for stage in placement.stages_of(rank))
    hidden = load.micro_batch_size * load.seq_len * model.hidden_size * compute_bytes(load)
    return ends * micro_batches(placement, load) * hidden // placement.degree("tp")
