"""The layouts of runs that train compared: a row for each cell, and a sentence for each pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from orchestrator.analysis.comparing.compare import FUNCTIONS, SAME_FOR_ALL
from orchestrator.analysis.comparing.confidence import spread
from orchestrator.analysis.comparing.gaps import MISSING, Missing, missing
from orchestrator.analysis.comparing.metrics import Metric
from orchestrator.analysis.comparing.rounds import Load, by_round, completed, load_of, whole
from orchestrator.analysis.comparing.verdicts import VERDICTS, Ruling, rulings
from orchestrator.analysis.training.ablation import (
    TRAINING_EFFECTS,
    TrainingEffect,
    training_effects,
    without_result,
)
from orchestrator.analysis.training.observed import (
    TrainedParts,
    TrainingTimes,
    by_cell,
    clocks_in,
    observed_in,
    times_of,
)
from orchestrator.analysis.training.rows import TRAINED, Trained, TrainingFigures
from orchestrator.store import folders
from orchestrator.store.schema import COMPLETED, CellKey
from orchestrator.store.store import Store
from workers.rows import Column, Table, column, group, grouped, reduced, row
from workers.units import is_cpu

THROUGHPUT = Metric(
    "tokens_per_second",
    "tokens/s",
    lambda run: run.rate.tokens_per_second,
    objective="throughput",
    says="trains {ratio} the tokens a second of {other}",
    at="at {} sequences a step",
)


@row
class TrainingStanding:
    """What became of a cell, and how it stands among the layouts of the same load."""

    cell: CellKey = group()
    times: TrainingTimes = group()
    status: str = column("completed where a run is; else failed")
    reason: str | None = column("of the last run that failed")
    num_starts: int = column("starts that have a completed run", "1")
    num_runs: int = column("runs that are completed, of all starts", "1")
    relative_to_best: float | None = column(
        "tokens_per_second over that of the layout with the best mean, over the rounds of both", "1"
    )
    tokens_per_second_ci_low: float | None = column(
        "lower end of the mean's 95% interval, from two starts on", "tokens/s", source="Student"
    )
    tokens_per_second_ci_high: float | None = column(
        "upper end of it", "tokens/s", source="Student"
    )


@row
class TrainingComparison(TrainingFigures, TrainingStanding):
    """One cell. Its figures are over its completed runs: the mean over the runs of a start, then
    over starts."""


FIGURES = {field.name for field in fields(TrainingFigures)}
TRAINING_COMPARED = Table("comparison", TrainingComparison, lambda one: _is_compared(one))


def _is_compared(one: Column) -> bool:
    return one.path[0] not in FIGURES or one.over_runs is not None


@dataclass(frozen=True, slots=True)
class TrainingFindings:
    """A row for each cell, the best of a load first, what is shown of each pair, what changes do.
    lost: why changed cells have no result. missing: cells with fewer runs than were asked for."""

    comparison: Sequence[TrainingComparison]
    found: Sequence[Ruling]
    effects: Sequence[TrainingEffect] = ()
    lost: Sequence[str] = ()
    missing: Sequence[Missing] = ()

    def sentences(self, load: Load) -> list[str]:
        """What is shown of the layouts of one load."""
        rulings = (one for one in self.found if one.field.load == load)
        return [verdict.sentence for ruling in rulings for verdict in ruling.verdicts]

    def as_data(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        verdicts = [verdict for ruling in self.found for verdict in ruling.verdicts]
        return {
            "comparison": TRAINING_COMPARED.data(self.comparison),
            "verdicts": VERDICTS.data(verdicts),
            "ablations": TRAINING_EFFECTS.data(self.effects),
            "missing": MISSING.data(self.missing),
        }


def trained_at(paths: Iterable[Path]) -> list[Path]:
    """The experiments at or below `paths` that trained, or were to. Raises UserError where there
    are no results."""
    found = (folder for path in paths for folder in folders.find(path))
    return [folder for folder in found if Store(folder).holds(TRAINED.name) or _was_to(folder)]


def _was_to(folder: Path) -> bool:
    """Whether an experiment was asked to train, by its manifest: it may have no run yet."""
    asked: Mapping[str, object] = folders.read_manifest(folder).get("experiment", {})
    return asked.get("workload") == "train"


def findings_of(paths: Iterable[Path], difference: float | None = None) -> TrainingFindings:
    """What the experiments in the folders `paths` say. Raises UserError for those of another schema
    version. difference: see `rulings`."""
    runs: list[Trained] = []
    parts: list[TrainedParts] = []
    clocks: dict[CellKey, float] = {}
    lacking: list[Missing] = []
    for path in paths:
        folders.check_version(path)
        table = Store(path).read(TRAINED.name)
        there = [] if table is None else TRAINED.rows(table)
        runs += there
        parts += observed_in(path).parts
        if any(run.cell.ablation == "comm" for run in there):  # clocks are asked of these alone
            clocks |= clocks_in(path)
        lacking += missing(path, folders.read_manifest(path), there)
    return replace(compared(runs, difference, parts, clocks), missing=lacking)


def compared(
    runs: Sequence[Trained],
    difference: float | None = None,
    parts: Sequence[TrainedParts] = (),
    clocks: Mapping[CellKey, float] | None = None,
) -> TrainingFindings:
    """What runs say. parts: of the cells that were observed. clocks: MHz of their GPUs."""
    asked = {} if difference is None else {"difference": difference}
    found = rulings(runs, metrics=[THROUGHPUT], **asked)
    order = {
        side.cell: (place, side.over(one.field.order[0]))
        for one in found
        for place, side in enumerate(one.field.order)
    }
    seen = by_cell(parts)
    cells = [
        _cell(mine, order, seen.get(mine[0].cell, ()))
        for mine in grouped(whole(runs), lambda run: run.cell).values()
    ]
    cells.sort(key=lambda one: (*load_of(one.cell), order.get(one.cell, (len(order), 0))[0]))
    return TrainingFindings(
        cells, found, training_effects(runs, parts, clocks), without_result(runs)
    )


def _cell(
    runs: Sequence[Trained], order: dict[CellKey, tuple[int, float]], parts: Sequence[TrainedParts]
) -> TrainingComparison:
    done = completed(runs)
    bad = [run for run in runs if run.status != COMPLETED]
    ends = spread(list(THROUGHPUT.starts(done).values()))
    counted, functions = (done, FUNCTIONS) if done else (runs, SAME_FOR_ALL)
    figures: dict[str, Any] = {}
    for name in FIGURES:
        kind = type(getattr(runs[0], name))
        starts = by_round(counted).values()
        means = [reduced(kind, [getattr(run, name) for run in mine], functions) for mine in starts]
        figures[name] = reduced(kind, means, functions)
    return TrainingComparison(
        cell=runs[0].cell,
        times=times_of(parts, is_cpu((done or runs)[0].conditions.device_name)),
        status=COMPLETED if done else bad[-1].status,
        reason=bad[-1].reason if bad else None,
        num_starts=len(by_round(done)),
        num_runs=len(done),
        relative_to_best=order[runs[0].cell][1] if runs[0].cell in order else None,
        tokens_per_second_ci_low=ends.ci_low if ends else None,
        tokens_per_second_ci_high=ends.ci_high if ends else None,
        **figures,
    )
