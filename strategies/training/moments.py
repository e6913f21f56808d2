"""The moment of an optimizer step that takes the most, of all that is not there always."""

from __future__ import annotations

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
# Elements of the parameters that the engine `torch` updates at a time, one parameter at least: so
# many gradients in float32 exist at once, half a gigabyte, and work for a kernel.
UPDATED = 2**27
FLOAT32 = 4  # bytes


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
    kept, _ = kept_bytes(placement, model, load, rank, micro_batches(placement, load))
    buffers = _Buffers.of(placement, model, load, rank)
    back = going_back_bytes(placement, model, load)
    one = layer_bytes(placement, model, load, load.activation_checkpointing)
    loss, head = (of(placement, model, load, rank) for of in (loss_bytes, head_bytes))
    so_far = _gradients_so_far(placement, model, load, rank, made)
    moments = (
        Moment(so_far[0], kept + max(loss, head), buffers.loss),
        Moment(so_far[1], kept + back, buffers.layer),
        Moment(so_far[2], one + back, buffers.layer),
        Moment(made, 0, buffers.end),
    )
    return max(moments, key=sum)


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
    back through a layer, and at the end."""

    loss: int
    layer: int
    end: int

    @classmethod
    def of(cls, placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> _Buffers:
        """Those of `rank`."""
        c, whole = compute_bytes(load), whole_elements(placement, model, rank)
        received = _received_bytes(placement, model, load, rank)
        if placement.option("zero_stage"):
            return cls._of_zero(placement, model, load, whole)
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
        cls, placement: Placement, model: ModelShape, load: TrainingLoad, whole: Mapping[str, int]
    ) -> _Buffers:
        """DeepSpeed has a bucket of gradients, what stage 3 gathers, and for what stages 1 and 2
        offload the largest gradient once more. On the device it updates from a float32 copy of the
        gradients of a part."""
        stage, c, every = placement.option("zero_stage"), compute_bytes(load), sum(whole.values())
        bucket, part = min(BUCKET, every), -(-every // placement.num_ranks)
        updated = FLOAT32 * (min(part, SUB_GROUP) if stage == "3" else part)
        beside = 0
        if stage == "3":
            beside = _most_gathered(whole)
        elif load.offload != "none":
            beside = largest_parameter(model)
        size = c * (bucket + beside)
        return cls(size, size, c * bucket + (updated if load.offload == "none" else 0))

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
