"""The rows of the charts of runs that train, and what they are selected and coloured by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from orchestrator.analysis.training.comparison import TrainingComparison
from orchestrator.analysis.training.observed import TrainedParts, by_cell
from orchestrator.analysis.training.rows import TRAINED_STEPS
from orchestrator.report.charts.views import Names, rounded
from orchestrator.report.training.predicted import Predictions
from orchestrator.store.schema import COMPLETED
from orchestrator.store.store import Store
from strategies.training import TrainingMemory
from workers.rows import grouped
from workers.units import is_cpu

Titles = Mapping[str, str]  # experiment -> what its load is called
# Part of a step, in the order of the bar -> how long it is. A wait for the last rank is the bubble
# of a pipeline.
PARTS: Mapping[str, Callable[[TrainedParts], float]] = {
    "forward": lambda one: one.forward_ms,
    "backward": lambda one: one.backward_ms,
    "optimizer": lambda one: one.optimizer_ms,
    "other": lambda one: one.other_ms,
    "exposed": lambda one: one.exposed_ms,
    "bubble": lambda one: one.bubble_ms or 0.0,
    "agreement": lambda one: one.agreement_ms if one.bubble_ms is None else 0.0,
    "gap": lambda one: one.gap_ms,
}
UNCUT = "uncut"
PREDICTED = ("weights", "gradients", "optimizer", "activations", "buffers")
SMALL = 1.001  # a sum of parts up to so much of the peak is that peak


@dataclass(frozen=True, slots=True)
class Row:
    """What the page selects a row of a chart by. load: what it is called."""

    load: str
    layout: str


@dataclass(frozen=True, slots=True)
class StepFigures(Row):
    """An optimizer step, in ms. timed: without a profiler. parts: of an observed step, or the timed
    one in one piece. hidden: communication beside them. reason: why it is not taken apart."""

    timed: float | None
    parts: Mapping[str, float | None]
    hidden: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class MemoryFigures(Row):
    """The fullest rank at its peak, in GB. parts: of it, or all of it in one piece. predicted: the
    same before the run, where it is known."""

    peak: float
    parts: Mapping[str, float | None]
    predicted: Mapping[str, float | None]
    reason: str | None


@dataclass(frozen=True, slots=True)
class LossFigures(Row):
    """The loss of one step of the first run of a layout."""

    step: int
    loss: float


def steps(
    cells: Iterable[TrainingComparison], parts: Iterable[TrainedParts], names: Names, titles: Titles
) -> list[StepFigures]:
    """A row for each cell that has a result. parts: of those that were observed."""
    seen = by_cell(list(parts))
    return [
        _step(one, seen.get(one.cell, ()), titles[one.cell.experiment], names[one.cell])
        for one in cells
        if one.status == COMPLETED
    ]


def _step(
    one: TrainingComparison, seen: Sequence[TrainedParts], load: str, layout: str
) -> StepFigures:
    timed = rounded(one.rate.step_time_ms)
    if one.times.forward_ms is None:  # as the comparison judged it
        return StepFigures(load, layout, timed, {UNCUT: timed}, None, one.times.observed_reason)
    starts = list(grouped(seen, lambda part: part.start).values())

    def mean(of: Callable[[TrainedParts], float]) -> float | None:
        return rounded(fmean(fmean(map(of, mine)) for mine in starts))

    cut = {name: mean(of) for name, of in PARTS.items()}
    hidden = rounded(one.times.communication_hidden_ms)
    return StepFigures(load, layout, timed, cut, hidden, one.times.observed_reason)


def memory(
    cells: Iterable[TrainingComparison], names: Names, titles: Titles, predictions: Predictions
) -> list[MemoryFigures]:
    """A row for each cell whose peak is known."""
    return [
        MemoryFigures(
            titles[one.cell.experiment],
            names[one.cell],
            one.memory.peak_memory_bytes / 1e9,
            *_held(one, one.memory.peak_memory_bytes, predictions.get(one.cell)),
        )
        for one in cells
        if one.status == COMPLETED and one.memory.peak_memory_bytes
    ]


def _held(
    one: TrainingComparison, peak: int, predicted: TrainingMemory | None
) -> tuple[Mapping[str, float | None], Mapping[str, float | None], str | None]:
    """The parts of a peak, what was predicted of them, and why they are not known. Each part is of
    the rank with most of it: where these are several ranks, no one of them held their sum."""
    known, on_cpu = one.memory, is_cpu(one.conditions.device_name)
    sizes = {
        "weights": known.weight_bytes,
        "gradients": known.gradient_bytes,
        "optimizer": known.optimizer_bytes,
    }
    kept = {name: size for name, size in sizes.items() if size is not None}
    said = {name: getattr(predicted, name) for name in PREDICTED} if predicted else {}
    all_kept, reason = sum(kept.values()), None
    if known.gradient_bytes is None:
        reason = "its engine does not tell its gradients"
    if on_cpu and all_kept <= peak:
        return _gb(kept | {"rest": peak - all_kept}), _gb(said), reason
    reason = reason or _why_no_parts(known.activation_bytes, all_kept, peak, predicted)
    kept["activations"] = peak - all_kept
    return _gb(kept if reason is None else {UNCUT: peak}), _gb(said), reason


def _why_no_parts(
    rest: int | None, all_kept: int, peak: int, predicted: TrainingMemory | None
) -> str | None:
    """Why what lies beside weights, gradients and states at a peak is not known; None where it
    is."""
    if rest is None:
        return "what lies in main memory, and what on the device, is not told apart"
    if all_kept + rest > SMALL * peak:
        return "its parts are greatest on different ranks"
    if predicted and not predicted.gradients:
        return "its gradients come as its activations go, and are not there at the peak"
    return None


def _gb(sizes: Mapping[str, int]) -> dict[str, float | None]:
    return {name: rounded(size / 1e9) for name, size in sizes.items()}


def losses(
    folders: Iterable[Path], cells: Iterable[TrainingComparison], names: Names, titles: Titles
) -> list[LossFigures]:
    """A row for each step of the first run of each cell that has a result."""
    done = {one.cell for one in cells if one.status == COMPLETED}
    tables = (Store(folder).read(TRAINED_STEPS.name) for folder in folders)
    rows = [row for table in tables if table is not None for row in TRAINED_STEPS.rows(table)]
    of_cell = grouped((row for row in rows if row.cell in done), lambda row: row.cell)
    return [
        LossFigures(titles[cell.experiment], names[cell], row.step, row.loss)
        for cell, mine in of_cell.items()
        for row in sorted(mine, key=lambda row: row.step)
        if (row.start, row.run) == min((one.start, one.run) for one in mine)
    ]
