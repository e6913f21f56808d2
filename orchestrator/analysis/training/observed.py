"""What the observed steps of a cell that trains say: columns of the comparison.

Each start is observed once, after its timed runs, and kept as the tables `training_parts` and
`training_overlaps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean, median

from orchestrator.store.schema import CellKey, StartKey
from orchestrator.store.store import Store
from workers.records import PROFILE_LIMIT, TELEMETRY
from workers.rows import Table, column, grouped, row
from workers.training_records import TrainingOverlapRow, TrainingPartsRow

UNSEEN = "no step was observed"


@row
class TrainedParts(TrainingPartsRow, StartKey):
    """The optimizer steps of one rank, taken apart: means over the steps that were profiled.

    forward, backward, optimizer, other, exposed, hand-over, agreement and gap sum to step_ms. On a
    GPU the first four are kernels that compute; on a CPU they are the host while it waits for no
    collective.
    """


@row
class TrainedOverlap(TrainingOverlapRow, StartKey):
    """How long the calls of one operation over one axis took in an optimizer step of a rank, and
    how much of that nothing computed: means over the steps that were profiled."""


@row
class TrainingTimes:
    """A step taken apart: means over the ranks of a start, then over starts. Null where no step was
    observed, and on GPUs where the profiler made it more than 5% longer."""

    forward_ms: float | None = column("computing the loss, mean over ranks", "ms")
    backward_ms: float | None = column(
        "computing gradients, with what is recomputed, mean over ranks", "ms"
    )
    optimizer_ms: float | None = column("updating the weights, mean over ranks", "ms")
    host_copy_ms: float | None = column(
        "data move between the GPU and main memory, whatever else runs, mean over ranks; null on a "
        "CPU",
        "ms",
    )
    communication_ms: float | None = column(
        "collectives of the layout are under way, mean over ranks; hand-overs are not in it", "ms"
    )
    communication_exposed_ms: float | None = column(
        "of that, nothing computes, mean over ranks", "ms"
    )
    communication_hidden_ms: float | None = column(
        "of that, something computes, mean over ranks", "ms"
    )
    communication_exposed_share: float | None = column(
        "exposed communication over the observed step, mean over ranks", "1"
    )
    bubble_measured: float | None = column(
        "share of a step without its update that a rank of the pipeline waits for others, moving "
        "of hand-overs included, mean over ranks; bubble_share is of the schedule alone",
        "1",
    )
    step_profile_ratio: float | None = column(
        "a profiled step over one that is not, mean over ranks", "1"
    )
    observed_reason: str | None = column("why these are null, or what of them is not known")


TRAINED_PARTS = Table("training_parts", TrainedParts)
TRAINED_OVERLAPS = Table("training_overlaps", TrainedOverlap)


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed, in rows: of every rank of every start."""

    parts: Sequence[TrainedParts] = ()
    overlaps: Sequence[TrainedOverlap] = field(default=())


def observed_in(folder: Path) -> Observed:
    """What was observed of the cells of an experiment."""
    store = Store(folder)
    parts, overlaps = (store.read(one.name) for one in (TRAINED_PARTS, TRAINED_OVERLAPS))
    return Observed(
        [] if parts is None else TRAINED_PARTS.rows(parts),
        [] if overlaps is None else TRAINED_OVERLAPS.rows(overlaps),
    )


def clocks_in(folder: Path) -> dict[CellKey, float]:
    """MHz of the multiprocessors in the runs of a cell: the median over samples of all GPUs.
    Without cells of which no GPU was sampled."""
    table = Store(folder).read(TELEMETRY.name)
    if table is None:
        return {}
    keys, clock = [one.name for one in fields(CellKey)], "sm_clock_mhz"
    sampled = (one for one in table.select([*keys, clock]).to_pylist() if one[clock])
    by_keys = grouped(sampled, lambda one: tuple(one[key] for key in keys))
    return {
        CellKey(**dict(zip(keys, of, strict=True))): median(one[clock] for one in mine)
        for of, mine in by_keys.items()
    }


def times_of(parts: Sequence[TrainedParts], on_cpu: bool) -> TrainingTimes:
    """The columns of one cell, from the rows of its starts."""
    starts = list(grouped(parts, lambda one: one.start).values())

    def mean(of: Callable[[TrainedParts], float | None]) -> float | None:
        known = [[found for one in mine if (found := of(one)) is not None] for mine in starts]
        return fmean(map(fmean, known)) if starts and all(known) else None

    ratio, reason = mean(lambda one: one.profile_ratio), UNSEEN if not parts else None
    if ratio is not None and ratio > PROFILE_LIMIT and not on_cpu:
        reason, starts = f"the profiled step takes {ratio:.2f} of the timed one", []
    said = dict.fromkeys(why for one in parts if one.reason for why in one.reason.split("; "))
    return TrainingTimes(
        forward_ms=mean(lambda one: one.forward_ms),
        backward_ms=mean(lambda one: one.backward_ms),
        optimizer_ms=mean(lambda one: one.optimizer_ms),
        host_copy_ms=mean(lambda one: one.host_copy_ms),
        communication_ms=mean(lambda one: one.busy_ms),
        communication_exposed_ms=mean(lambda one: one.exposed_ms),
        communication_hidden_ms=mean(lambda one: one.busy_ms - one.exposed_ms),
        communication_exposed_share=mean(lambda one: one.exposed_ms / one.step_ms),
        bubble_measured=mean(lambda one: one.bubble_share),
        step_profile_ratio=ratio,
        observed_reason=reason or "; ".join(said) or None,
    )


def by_cell(parts: Sequence[TrainedParts]) -> dict[CellKey, list[TrainedParts]]:
    """The rows of each cell."""
    return grouped(parts, lambda one: one.cell)
