"""What of a deployment has a result, and what is still to be done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from orchestrator.analysis.comparing.confidence import spread
from orchestrator.analysis.observed.accounting import PARTS_OF_STEP
from orchestrator.analysis.observed.communication import exposed
from orchestrator.analysis.outputs import kept_requests
from orchestrator.analysis.summary import MEASURED, Attempt, Measured
from orchestrator.experiment import Cell, Experiment, Run
from orchestrator.node import datasheet, fabric
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.store.arrow_files import concat
from orchestrator.store.schema import COMPLETED
from orchestrator.store.store import Store
from workers.messages import RankReport


@dataclass(slots=True)
class Job:
    """One deployment under an experiment. calibration: table FABRIC, None where there is none.

    tried: runs of this command, whatever came of them. given_up, unobservable: cells whose runs, or
    whose observing, failed. None of these is tried again before the next command.
    """

    deployment: PlannedDeployment
    experiment: Experiment
    store: Store
    calibration: pa.Table | None = None
    tried: set[Run] = field(default_factory=set)
    given_up: set[Cell] = field(default_factory=set)
    unobservable: set[Cell] = field(default_factory=set)

    @property
    def tags(self) -> Mapping[str, str]:
        """Under which Ray's metrics are told of this deployment."""
        asked = self.deployment.deployment
        without = "" if asked.ablation == "none" else f"-without-{asked.ablation}"
        return {
            "experiment": self.store.name,
            "model": asked.model,
            "strategy": asked.strategy + without,
            "engine": asked.engine,
        }

    def unfinished(self) -> list[PlannedCell]:
        """The cells that have something left to do."""
        return [
            cell for cell in self.deployment.cells if self.missing(cell) or self.is_unobserved(cell)
        ]

    def missing(self, cell: PlannedCell) -> list[Run]:
        """The runs that were asked for and have no result; where all have and they lie too far
        apart, one more."""
        if cell.cell in self.given_up:
            return []
        left = [
            run
            for run in runs_of(cell.cell, self.experiment)
            if run not in self.tried and not self.store.is_completed(run)
        ]
        asked = [run for run in left if run.index < self.experiment.num_runs]
        return asked if asked or self._is_narrow(cell) or self._in_vain(cell) else left[:1]

    def is_unobserved(self, cell: PlannedCell) -> bool:
        """Whether a cell is still to be taken apart."""
        left = self.given_up | self.unobservable
        return cell.cell not in left and self.store.observed(cell.cell) is None

    def throughputs(self, cell: PlannedCell) -> list[float]:
        """output_throughput of every run that has a result."""
        done = [one for one in self._kept(cell) if one.status == COMPLETED]
        return [one.throughput.output_throughput or 0.0 for one in done]

    def attempt(
        self,
        run: Run,
        cell: PlannedCell,
        block: int,
        started_at: str,
        device_name: str | None = None,
    ) -> Attempt:
        """A run of `cell`. device_name: None where it did not come so far."""
        asked = self.experiment
        return Attempt(
            key=self.store.run_key(run),
            plan=self.deployment.plan,
            work=cell.work,
            input_len=cell.cell.scenario.input_len,
            output_len=cell.cell.scenario.output_len,
            started_at=started_at,
            block=block,
            metadata=json.dumps(asked.metadata),
            levels=asked.goodput,
            request_rate=asked.request_rate,
            burstiness=asked.burstiness if cell.work.is_open else None,
            ceilings=fabric.ceilings(self.calibration, device_name) if device_name else None,
            sheet=datasheet.ceilings(device_name),
        )

    def kept_tables(self, requests: pa.Table, reports: Sequence[RankReport]) -> dict[str, pa.Table]:
        """What is kept of a run beside its row of the summary, by table."""
        detailed, decode = self.experiment.save_detailed, self.deployment.decode
        found = {
            "requests": kept_requests(requests, detailed, decode),
            "steps": concat(report.steps for report in reports),
            "collectives": concat(report.collectives for report in reports),
            "telemetry": concat(report.telemetry for report in reports),
        }
        return {name: table for name, table in found.items() if table is not None}

    def exposed_shares(self) -> list[tuple[int, str, float]]:
        """(rank, phase, percent of a step) of exposed communication, of each cell that was
        observed, in order."""
        tables = [self.store.observed(cell.cell) for cell in self.deployment.cells]
        known = [table for table in tables if table is not None]
        return [share for table in known for share in exposed(PARTS_OF_STEP.rows(table))]

    def give_up(self, cells: Sequence[PlannedCell]) -> None:
        """Leave the runs of these cells to the next command."""
        self.given_up.update(cell.cell for cell in cells)

    def _kept(self, cell: PlannedCell) -> list[Measured]:
        tables = [self.store.summary_of(run) for run in runs_of(cell.cell, self.experiment)]
        return [MEASURED.rows(table)[0] for table in tables if table is not None]

    def _in_vain(self, cell: PlannedCell) -> bool:
        """Whether a run of this command gave no result: more of them would not narrow the
        interval."""
        mine = [run for run in self.tried if run.cell == cell.cell]
        return any(not self.store.is_completed(run) for run in mine)

    def _is_narrow(self, cell: PlannedCell) -> bool:
        """Whether half of the mean's interval is within `until_ci` of it, or nothing was asked of
        it."""
        if self.experiment.until_ci is None:
            return True
        found = spread(self.throughputs(cell))
        half = found.half_width if found else None
        return half is not None and half <= self.experiment.until_ci


def runs_of(cell: Cell, experiment: Experiment) -> list[Run]:
    """Every run that a cell can get."""
    return [Run(cell, index) for index in range(experiment.run_limit)]


def all_completed(
    planned: Sequence[PlannedDeployment], experiment: Experiment, folder: Path
) -> bool:
    """Whether every run that was needed has a result in `folder`. Runs that `until_ci` may add are
    needed where they were tried."""
    store = Store(folder)
    cells = [cell.cell for one in planned for cell in one.cells]
    runs = [run for cell in cells for run in runs_of(cell, experiment)]
    needed = [run for run in runs if run.index < experiment.num_runs or store.summary_of(run)]
    return all(map(store.is_completed, needed))
