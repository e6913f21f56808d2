"""The rows of what a rank that trains reports, beside those of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.rows import Table, column, row

if TYPE_CHECKING:
    import pyarrow as pa


@row
class TrainingStepRow:
    """One optimizer step of a run that trains, as rank 0 saw it. Loss and norm are of the weights
    before the step, and of the whole model."""

    step: int = column("number of the step in the run, from 0", "1")
    loss: float = column("mean loss of a token of the global batch, in float32", "nat")
    grad_norm: float = column("2-norm of the gradient of the whole model, in float32", "1")
    end_s: float = column(
        "when it ended, since the start of the run, without the time in which it was stopped or "
        "wrote states",
        "s",
    )
    resumed: bool | None = column("whether it is the first one after the run went on from a state")


@row
class TrainingCollectiveRow:
    """The calls of one operation over one mesh axis in one optimizer step, of one rank, counted
    where torch hands them to its process groups."""

    rank: int = column("rank of the placement", "1")
    op: str = column("operation, as all_reduce")
    axis: str = column("mesh axis of its group")
    calls: int = column("calls of a step", "1")
    bytes: int = column(
        "message sizes of a step, summed over calls: the tensor of an all-reduce or a send, the "
        "whole tensor of an all-gather or a reduce-scatter",
        "B",
        source="nccl-tests, PERFORMANCE.md",
    )


@row
class TrainingPartsRow:
    """The optimizer steps of one rank, taken apart: means over those that were profiled."""

    rank: int = column("rank of the placement", "1")
    stages: Sequence[int] = column("numbers of its stages of a pipeline", "1")
    steps: int = column("steps that count", "1")
    step_ms: float = column("an optimizer step", "ms")
    forward_ms: float = column("computing the loss", "ms")
    backward_ms: float = column("computing gradients, with what is recomputed for them", "ms")
    optimizer_ms: float = column("updating the weights", "ms")
    other_ms: float = column("the rest of computing, as copies of what is gathered", "ms")
    exposed_ms: float = column(
        "a collective of the layout is under way, and nothing computes; waiting for its last rank "
        "is in it",
        "ms",
    )
    handover_ms: float = column(
        "a hand-over between stages is under way, and nothing else is: waiting for it, and moving",
        "ms",
    )
    agreement_ms: float = column(
        "ranks agree in loss and norm: those that are done wait for the last", "ms"
    )
    gap_ms: float = column("nothing runs", "ms")
    busy_ms: float = column(
        "a collective of the layout is under way, whatever else is; hand-overs are not in it", "ms"
    )
    host_copy_ms: float | None = column(
        "data move between the GPU and main memory, as what is offloaded, whatever else runs; null "
        "on a CPU",
        "ms",
    )
    bubble_ms: float | None = column(
        "hand-overs and agreement: a rank of a pipeline waits for another; null without one", "ms"
    )
    bubble_share: float | None = column(
        "that over the step without its update; null without a pipeline",
        "1",
        formula="bubble_ms / (step_ms - optimizer_ms)",
    )
    timed_step_ms: float = column("a step that is not profiled, median", "ms")
    profile_ratio: float = column("a profiled step over it", "1")
    reason: str | None = column("what of the step is not known, and why")


@row
class TrainingOverlapRow:
    """How long the calls of one operation over one axis took in an optimizer step, and how much of
    that nothing computed: means over the steps that were profiled."""

    rank: int = column("rank of the placement", "1")
    op: str = column(
        "operation, as all_reduce; send_recv: a kernel that may send and receive at once"
    )
    axis: str | None = column("mesh axis of its group; null where the profiler does not tell it")
    seen_calls: float = column("calls of a step that were seen, or kernels of them", "1")
    busy_ms: float | None = column(
        "a call is under way; on a CPU from its issue to its end; null where not every call was "
        "seen, and of hand-overs on a CPU, whose end is told only to who waits for them",
        "ms",
    )
    exposed_ms: float | None = column(
        "of that, nothing computes; of hand-overs on a CPU, the host waits for them", "ms"
    )
    hidden_ms: float | None = column("of that, something computes", "ms")


TRAINING_STEPS = Table("training_steps", TrainingStepRow)
TRAINING_COLLECTIVES = Table("training_collectives", TrainingCollectiveRow)
TRAINING_PARTS = Table("training_parts", TrainingPartsRow)
TRAINING_OVERLAPS = Table("training_overlaps", TrainingOverlapRow)


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What one rank reports of a run, beside what every run has.

    steps: table TRAINING_STEPS, from rank 0 alone. traffic: table TRAINING_COLLECTIVES, of one
    step. weight_bytes, gradient_bytes, optimizer_bytes: what this rank keeps; of gradients, at the
    end of a backward pass, None where an engine does not say. states_s: seconds in which states
    were written to go on from. states_reason: how many of them could not be written, and why, as
    rank 0 knows it. parts, overlaps: of an observed run, tables TRAINING_PARTS and
    TRAINING_OVERLAPS.
    """

    steps: pa.Table | None
    traffic: pa.Table
    weight_bytes: int
    gradient_bytes: int | None
    optimizer_bytes: int
    states_s: float = 0.0
    states_reason: str | None = None
    parts: pa.Table | None = None
    overlaps: pa.Table | None = None
