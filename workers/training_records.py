"""The rows of optimizer steps that were taken apart, as a rank reports them."""

from __future__ import annotations

from collections.abc import Sequence

from workers.rows import Table, column, row


@row
class TrainingPartsRow:
    """The optimizer steps of one rank, taken apart: means over the steps that were profiled.

    forward, backward, optimizer, other, exposed, hand-over, agreement and gap sum to step_ms. On a
    GPU the first four are kernels that compute; on a CPU they are the host while it waits for no
    collective.
    """

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


TRAINING_PARTS = Table("training_parts", TrainingPartsRow)
TRAINING_OVERLAPS = Table("training_overlaps", TrainingOverlapRow)
