"""Which starts the cells of an experiment get: those that were asked for, and more until the means
of the starts agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.comparing.confidence import is_narrow
from orchestrator.analysis.comparing.rounds import means
from orchestrator.analysis.summary import MEASURED, Measured
from orchestrator.analysis.training.rows import TRAINED, Trained
from orchestrator.experiment import Cell, Experiment, Run, layout_name
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.jobs import Job
from orchestrator.store.live import Live, LiveLayout, beginning
from orchestrator.store.schema import COMPLETED, CellKey, cell_key
from orchestrator.store.store import Store
from workers.rows import Table, grouped

Load = Sequence[tuple[Job, PlannedCell]]  # the cells that are compared with each other
Kept = Mapping[CellKey, Sequence[Measured | Trained]]  # runs of each cell


@dataclass(frozen=True, slots=True)
class Schedule:
    """The starts of all jobs. A start that is added goes to every layout of a load, so that each
    round is complete. device_name: of the devices; None where that is not known."""

    jobs: Sequence[Job]
    experiment: Experiment
    store: Store
    device_name: str | None = None

    def cells(self, start: int) -> set[Cell]:
        """The cells that get a start: all of them, where it was asked for; else, as far as is known
        now, those of the loads to which it is added."""
        return self._cells(start, self._kept())

    def is_unfinished(self) -> bool:
        """Whether anything is left to do, as far as is known now."""
        return any(
            job.unfinished(start, cells) for start, cells in self._starts() for job in self.jobs
        )

    def left(self) -> int:
        """Runs that are to be made, as far as is known now."""
        return sum(len(runs) for _, _, runs in self._missing())

    def begun(self) -> Live:
        """What is to be made, as it is told and kept for whoever watches."""
        missing = list(self._missing())
        layouts = [_live(job, sum(len(r) for j, _, r in missing if j is job)) for job in self.jobs]
        seconds = [
            None if (each := job.expected_s(cell, self.device_name)) is None else each * len(runs)
            for job, cell, runs in missing
        ]
        known = [one for one in seconds if one is not None]
        expected = sum(known) if known and len(known) == len(seconds) else None
        return beginning(self.store.folder, layouts, self.completed(), expected)

    def _missing(self) -> Iterator[tuple[Job, PlannedCell, list[Run]]]:
        for start, cells in self._starts():
            for job in self.jobs:
                for cell in job.deployment.cells:
                    if cell.cell in cells and (runs := job.missing(cell, start)):
                        yield job, cell, runs

    def completed(self) -> int:
        """Runs that have a result."""
        return sum(job.completed(cell) for job in self.jobs for cell in job.deployment.cells)

    def _starts(self) -> Iterator[tuple[int, set[Cell]]]:
        kept = self._kept()
        return ((start, self._cells(start, kept)) for start in range(self.experiment.start_limit))

    def _cells(self, start: int, kept: Kept) -> set[Cell]:
        every = [(job, cell) for job in self.jobs for cell in job.deployment.cells]
        if start < self.experiment.num_starts:
            return {cell.cell for _, cell in every}
        return {
            cell.cell
            for load in grouped(every, lambda one: one[1].cell.load).values()
            if self._is_added(start, load, kept)
            for job, cell in load
            if not job.in_vain(cell)
        }

    def _kept(self) -> Kept:
        """The runs with a result, where starts may be added."""
        if self.experiment.until_ci is None:
            return {}
        kept: Table[Any] = TRAINED if self.experiment.workload == "train" else MEASURED
        table = self.store.read(kept.name)
        runs = [] if table is None else kept.rows(table)
        return grouped((run for run in runs if run.status == COMPLETED), lambda run: run.cell)

    def _is_added(self, start: int, load: Load, kept: Kept) -> bool:
        """Whether a load gets a start beyond those that were asked for: one that some layout of it
        has, or the next one while a cell is not narrow."""
        runs = {cell.cell: kept.get(cell_key(self.store.name, cell.cell), ()) for _, cell in load}
        begun = 1 + max((run.start for mine in runs.values() for run in mine), default=-1)
        if start < begun:
            return True
        before = range(max(begun, self.experiment.num_starts))
        if start != len(before) or any(job.missing(cell, n) for n in before for job, cell in load):
            return False
        # An ablation is no result of its layout: it shares the rounds, and asks for none.
        judged = [one for one in load if one[1].cell.deployment.ablation == "none"]
        return any(self._is_wide(runs[cell.cell]) for job, cell in judged if not job.in_vain(cell))

    def _is_wide(self, runs: Sequence[Measured | Trained]) -> bool:
        until_ci = self.experiment.until_ci
        found = list(means(runs, _throughput).values())
        return until_ci is not None and not is_narrow(found, until_ci)


def _live(job: Job, runs: int) -> LiveLayout:
    asked = job.deployment.deployment
    layout = layout_name(asked.strategy, asked.ablation)
    return LiveLayout(asked.name, f"{layout} {asked.engine}", runs)


def _throughput(run: Measured | Trained) -> float | None:
    if isinstance(run, Trained):
        return run.rate.tokens_per_second
    return run.throughput.output_throughput
