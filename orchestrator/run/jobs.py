"""What of a deployment has a result, and what is still to be done."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from orchestrator.analysis.observed.accounting import PARTS_OF_STEP
from orchestrator.analysis.observed.communication import exposed
from orchestrator.analysis.outputs import kept_requests
from orchestrator.analysis.summary import Attempt
from orchestrator.analysis.training.rows import TRAINED, TrainingAttempt
from orchestrator.experiment import Cell, Experiment, Run
from orchestrator.node import datasheet, fabric
from orchestrator.plan.arrival_times import trace_in_words
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.plan.training import last_state
from orchestrator.run.foretold import foretold
from orchestrator.store.arrow_files import concat
from orchestrator.store.names import safe_name
from orchestrator.store.store import COUNTED, Store
from workers.messages import RankReport, TrainingWork, Work

SAVED = "checkpoints"  # in the manifest: deployment -> the folder that was written
STATES = "states"  # folder of the experiment: what runs that train go on from, a folder for each


@dataclass(slots=True)
class Job:
    """One deployment under an experiment.

    block, node: numbers of this command and of its node among those that made the results.
    calibration: table FABRIC, None where there is none. tried: runs of this command, whatever came
    of them. given_up, unobservable, uncountable, unwritable: cells whose runs, or whose observing,
    counting or checkpoint, failed; none of these is tried again before the next command. short:
    cells of which was told that their runs are shorter than was asked for.
    """

    deployment: PlannedDeployment
    experiment: Experiment
    store: Store
    block: int = 0
    node: int | None = None
    calibration: pa.Table | None = None
    tried: set[Run] = field(default_factory=set)
    given_up: set[Cell] = field(default_factory=set)
    unobservable: set[Cell] = field(default_factory=set)
    uncountable: set[Cell] = field(default_factory=set)
    unwritable: set[Cell] = field(default_factory=set)
    short: set[Cell] = field(default_factory=set)

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

    def unfinished(self, start: int, wanted: Container[Cell]) -> list[PlannedCell]:
        """The cells of `wanted` that have something left to do in a start."""
        return [
            cell
            for cell in self.deployment.cells
            if cell.cell in wanted
            and (
                self.missing(cell, start)
                or self.is_unobserved(cell, start)
                or self.is_uncounted(cell, start)
                or self.is_unsaved(cell, start)
                or self.stateless(cell, start)
            )
        ]

    def missing(self, cell: PlannedCell, start: int) -> list[Run]:
        """The runs of a start that have no result and were not tried."""
        if cell.cell in self.given_up:
            return []
        return [
            run
            for run in self.runs(cell, start)
            if run not in self.tried and not self.store.is_completed(run)
        ]

    def lacking(self, cell: PlannedCell, start: int) -> list[Run]:
        """What is missing of a start and of those after it that were asked for."""
        stop = max(self.experiment.num_starts, start + 1)
        return [run for number in range(start, stop) for run in self.missing(cell, number)]

    def is_unobserved(self, cell: PlannedCell, start: int) -> bool:
        """Whether a cell is still to be taken apart in a start."""
        left = self.given_up | self.unobservable
        is_changed = self.deployment.deployment.ablation != "none"
        if isinstance(cell.work, TrainingWork) and is_changed:
            return False
        return cell.cell not in left and self.store.observed(cell.cell, start) is None

    def is_uncounted(self, cell: PlannedCell, start: int) -> bool:
        """Whether the kernels of a cell are still to be counted after a start: after the first one,
        of a layout that nothing was left out of."""
        if not self.experiment.ncu or start > 0 or self.deployment.deployment.ablation != "none":
            return False
        left = self.given_up | self.uncountable
        return cell.cell not in left and self.store.observed(cell.cell, start, COUNTED) is None

    def is_unsaved(self, cell: PlannedCell, start: int) -> bool:
        """Whether the checkpoint of a cell is still to be written in a start: in the first one, as
        every run ends with the same weights. One that lies there counts where it is of these
        results."""
        folder = cell.work.save if isinstance(cell.work, TrainingWork) else None
        if folder is None or start > 0 or cell.cell in self.given_up | self.unwritable:
            return False
        written = self.store.manifest().get(SAVED, {}).get(self.deployment.deployment.name)
        return written != folder or not Path(folder, "config.json").is_file()

    def stateless(self, cell: PlannedCell, start: int) -> list[Run]:
        """The runs of a start that are kept, whose last state could not be written and is not
        there: another one could not begin with it. Those of this command are not tried again."""
        if self.experiment.checkpoint_interval is None or not isinstance(cell.work, TrainingWork):
            return []
        last = last_state(cell.work)
        return [
            run
            for run in self.runs(cell, start)
            if run not in self.tried
            and self._lacks_states(run)
            and not (self._states_of(run) / last).is_dir()
        ]

    def _lacks_states(self, run: Run) -> bool:
        row = self.store.summary_of(run) if self.store.is_completed(run) else None
        return row is not None and TRAINED.rows(row)[0].startup.states_reason is not None

    def _states_of(self, run: Run) -> Path:
        return self.store.folder.absolute() / STATES / safe_name(run.name)

    def keep_saved(self, folder: str) -> None:
        """Keep that the checkpoint of this deployment is in a folder."""
        before = self.store.manifest().get(SAVED, {})
        self.store.update_manifest(**{SAVED: {**before, self.deployment.deployment.name: folder}})

    def runs(self, cell: PlannedCell, start: int) -> list[Run]:
        """The runs of a cell in one start."""
        return [Run(cell.cell, start, index) for index in range(self.experiment.num_runs)]

    def completed(self, cell: PlannedCell) -> int:
        """How many of the runs that a cell can get have a result."""
        starts = range(self.experiment.start_limit)
        runs = [run for start in starts for run in self.runs(cell, start)]
        return sum(map(self.store.is_completed, runs))

    def in_vain(self, cell: PlannedCell) -> bool:
        """Whether a run of this command gave no result: another start would not narrow the
        interval."""
        mine = [run for run in self.tried if run.cell == cell.cell]
        return cell.cell in self.given_up or not all(map(self.store.is_completed, mine))

    def attempt(
        self, run: Run, cell: PlannedCell, started_at: str, device_name: str | None = None
    ) -> Attempt:
        """A run of `cell`. device_name: None where it did not come so far."""
        asked, mean_rate = self.experiment, cell.served.request_rate
        is_trace = asked.request_rate is None and mean_rate is not None
        return Attempt(
            key=self.store.run_key(run),
            plan=self.deployment.plan,
            work=cell.served,
            started_at=started_at,
            block=self.block,
            node=self.node,
            metadata=json.dumps(asked.metadata),
            levels=asked.levels,
            request_rate=mean_rate if is_trace else asked.request_rate,
            burstiness=None if asked.request_rate is None else asked.burstiness,
            trace=trace_in_words(asked.trace_window, asked.trace_speed) if is_trace else None,
            ceilings=fabric.ceilings(self.calibration, device_name) if device_name else None,
            sheet=datasheet.ceilings(device_name),
            predicted=foretold(
                cell.cell, asked, self.deployment.plan, cell.served, device_name, self.calibration
            ),
        )

    def expected_s(self, cell: PlannedCell, device_name: str | None) -> float | None:
        """How long a run should take, without its warm-up; None where nobody knows."""
        if cell.sized is not None or not isinstance(cell.work, Work):
            return None
        plan, asked = self.deployment.plan, self.experiment
        found = foretold(cell.cell, asked, plan, cell.work, device_name, self.calibration)
        rate = found.output_throughput
        tokens = sum(one.output_len for one in cell.work.requests)
        return tokens / rate if rate else None

    def training_attempt(
        self, run: Run, cell: PlannedCell, started_at: str, device_name: str | None = None
    ) -> TrainingAttempt:
        """A run of `cell`, which trains. device_name: None where it did not come so far."""
        sheet, plan = datasheet.ceilings(device_name), self.deployment.plan
        assert isinstance(cell.work, TrainingWork), "the cell trains"
        limit = sheet.rates(plan.fastest_dtype) if sheet else None
        return TrainingAttempt(
            key=self.store.run_key(run),
            plan=plan,
            steps=cell.work.steps,
            started_at=started_at,
            block=self.block,
            node=self.node,
            metadata=json.dumps(self.experiment.metadata),
            peak=limit.flops if limit else None,
        )

    def training_work(self, run: Run, cell: PlannedCell) -> TrainingWork:
        """What a run of `cell` does: with a folder of its own for its states, if it is to keep
        some, and with that of the checkpoint, if it is to be written. One that is changed to be
        compared keeps none."""
        assert isinstance(cell.work, TrainingWork), "the cell trains"
        work = cell.work if self.is_unsaved(cell, run.start) else replace(cell.work, save=None)
        interval = self.experiment.checkpoint_interval
        if interval is None or cell.cell.deployment.ablation != "none":
            return work
        return replace(work, state=str(self._states_of(run)), interval=interval)

    def keep_settings(self, settings: Mapping[str, str]) -> None:
        """Keep what an engine with settings of its own says of them, by deployment."""
        before = self.store.manifest().get("engine_settings", {})
        now = {**before, self.deployment.deployment.name: dict(settings)}
        if settings and now != before:
            self.store.update_manifest(engine_settings=now)

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
        observed, in order; of the last start in which it was. Of training there are none."""
        if self.experiment.workload == "train":
            return []
        tables = [self._last_observed(cell) for cell in self.deployment.cells]
        known = [table for table in tables if table is not None]
        return [share for table in known for share in exposed(PARTS_OF_STEP.rows(table))]

    def give_up(self, cells: Sequence[PlannedCell]) -> None:
        """Leave the runs of these cells to the next command."""
        self.given_up.update(cell.cell for cell in cells)

    def _last_observed(self, cell: PlannedCell) -> pa.Table | None:
        starts = reversed(range(self.experiment.start_limit))
        tables = (self.store.observed(cell.cell, start) for start in starts)
        return next((table for table in tables if table is not None), None)


def all_completed(
    planned: Sequence[PlannedDeployment], experiment: Experiment, folder: Path
) -> bool:
    """Whether every run that was needed has a result in `folder`, and every checkpoint and last
    state that was asked for is written. Runs of starts that `until_ci` may add are needed where
    they were tried."""
    store = Store(folder)
    jobs = [Job(deployment, experiment, store) for deployment in planned]
    starts = range(experiment.start_limit)
    runs = [
        run
        for job in jobs
        for cell in job.deployment.cells
        for start in starts
        for run in job.runs(cell, start)
    ]
    needed = [run for run in runs if run.start < experiment.num_starts or store.summary_of(run)]
    unsaved = (
        job.is_unsaved(cell, 0) or any(job.stateless(cell, start) for start in starts)
        for job in jobs
        for cell in job.deployment.cells
    )
    return all(map(store.is_completed, needed)) and not any(unsaved)
