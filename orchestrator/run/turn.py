"""One deployment's turn on the devices: which of its runs are made, and that each is kept.

A failed run costs its workers and the rest of its cell; the next cell gets fresh ones. A failed
build costs its deployment. Every finished run is on disk before the next one starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from orchestrator.analysis.observed.accounting import account
from orchestrator.analysis.summary import MEASURED, Building, Measured, failed, measured
from orchestrator.analysis.throughput import first_token_s
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.group import WorkerGroup
from orchestrator.experiment import Cell, Run
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.run.interleaving import Interleaving
from orchestrator.run.jobs import Job
from orchestrator.run.progress import Progress
from orchestrator.store.arrow_files import concat
from orchestrator.store.folders import now
from workers.messages import RankReport, Work

OBSERVED_TOKENS = 16  # made for each request while a run is taken apart: enough steps for a mean
OBSERVING_TRIES = 2  # a profiler may bring its process down; a fresh one seldom


@dataclass(slots=True)
class Start:
    """A group of workers that is built, and what that took.

    asked_at: when the actors were asked for, on the monotonic clock. warm: cells that were warmed
    up in it.
    """

    workers: WorkerGroup
    building: Building
    asked_at: float
    timeout_s: float
    warm: set[Cell] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        deployment: PlannedDeployment,
        cluster: Cluster,
        tags: Mapping[str, str],
        timeout_s: float,
    ) -> Start:
        """Start and build the workers of a deployment.

        tags: under which Ray's metrics are told of them. Raises RunFailed, with nothing left, where
        that does not succeed.
        """
        asked_at = time.monotonic()
        asked, plan = deployment.deployment, deployment.plan
        name = f"{asked.model}/{asked.strategy}"
        workers = WorkerGroup.start(cluster, name, plan, asked.engine, tags)
        try:
            began = time.monotonic()
            built = workers.build(timeout_s)
        except BaseException:
            workers.kill()
            raise
        device_name = "cpu" if plan.device == "cpu" else built[0].device_name
        building = Building(built, device_name, time.monotonic() - began)
        return cls(workers, building, asked_at, timeout_s)

    def serve(self, work: Work) -> list[RankReport]:
        """Serve `work` on every rank. Raises RunFailed as soon as one rank has failed."""
        asked = time.monotonic()
        reports = self.workers.run(work, self.timeout_s)
        if self.building.startup_s is None:
            startup_s = asked - self.asked_at + first_token_s(reports)
            self.building = replace(self.building, startup_s=startup_s)
        return reports


@dataclass(slots=True)
class Turn:
    """The turn `number` of one deployment.

    start: None before the first build and after a failure. runs_s: seconds spent in timed runs.
    failed: whether a run or a build did.
    """

    job: Job
    number: int
    cluster: Cluster
    progress: Progress
    start: Start | None = None
    runs_s: float = 0.0
    failed: bool = False

    def serve(self, interleaving: Interleaving) -> None:
        """A run of every cell, and again until none is missing or the next layout has its turn;
        then cells are observed.

        Observed runs come last, so that no timed run follows a profiled one in the same process.
        Leaves no worker behind, whatever happens.
        """
        began = time.monotonic()
        try:
            while cells := [one for one in self.job.deployment.cells if self.job.missing(one)]:
                self._pass_over(cells)
                if interleaving.hand_over(time.monotonic() - began, self.runs_s, self.failed):
                    break
            self._observe_cells()
            if self.start is not None:
                self.start.workers.close()
                self.start = None
        finally:
            self._kill()

    # -- workers

    def _started(self) -> Start:
        """The workers of this turn; fresh ones where there are none. Raises RunFailed."""
        if self.start is None:
            self._tell("building")
            timeout_s = self.job.experiment.timeout
            deployment = self.job.deployment
            self.start = Start.of(deployment, self.cluster, self.job.tags, timeout_s)
        return self.start

    def _has_workers(self) -> bool:
        """Whether there are workers, fresh ones where there were none.

        Where that fails the deployment is given up, and every run that it lacks is kept as failed.
        """
        started_at = now()
        try:
            self._started()
        except RunFailed as failure:
            self.failed = True
            reason = RunFailed(f"build: {failure.reason}", failure.detail)
            for cell in self.job.deployment.cells:
                for run in self.job.missing(cell):
                    self._fail(run, cell, started_at, reason)
            self.job.give_up(self.job.deployment.cells)
        return self.start is not None

    def _kill(self) -> None:
        if self.start is not None:
            self.start.workers.kill()
        self.start = None

    # -- runs

    def _pass_over(self, cells: Sequence[PlannedCell]) -> None:
        for cell in cells:
            if cell.cell not in self.job.given_up and self._has_workers():
                self._serve_cell(cell)

    def _serve_cell(self, cell: PlannedCell) -> None:
        """The next run of a cell, after warming up where these workers have not yet."""
        run, total = self.job.missing(cell)[0], self.job.experiment.num_runs
        self.job.tried.add(run)
        doing, started_at = "warm-up: ", now()
        try:
            self._warm_up(cell)
            doing, started_at = "", now()
            self._tell(f"run {run.index + 1}/{max(total, run.index + 1)}", cell)
            self._run(run, cell, started_at)
        except RunFailed as failure:
            self.failed = True
            self._kill()
            failure = RunFailed(doing + failure.reason, failure.detail)
            self._fail(run, cell, started_at, failure)
            self.job.give_up([cell])

    def _warm_up(self, cell: PlannedCell) -> None:
        start = self._started()
        times = 0 if cell.cell in start.warm else self.job.experiment.num_warmups
        for _ in range(times):
            self._tell("warming up", cell)
            start.serve(cell.warmup)
        start.warm.add(cell.cell)

    def _run(self, run: Run, cell: PlannedCell, started_at: str) -> None:
        start, began = self._started(), time.monotonic()
        reports = start.serve(cell.work)
        self.runs_s += time.monotonic() - began
        requests = concat(report.requests for report in reports)
        if requests is None:
            raise RunFailed("no rank reported any request")
        requests = requests.sort_by("request_index")
        attempt = self.job.attempt(run, cell, self.number, started_at, start.building.device_name)
        kept = measured(attempt, start.building, reports, requests)
        self._keep(run, kept, self.job.kept_tables(requests, reports))

    # -- observed runs

    def _observe_cells(self) -> None:
        """Take each cell apart that has not been. That is no run of its own: where it fails, its
        columns stay empty."""
        for cell in self.job.deployment.cells:
            for _ in range(OBSERVING_TRIES):
                if self.job.is_unobserved(cell):
                    self._observe(cell)
            self.job.unobservable.add(cell.cell)

    def _observe(self, cell: PlannedCell) -> None:
        doing = "build: "
        try:
            start = self._started()
            doing = ""
            self._tell("observing", cell)
            reports = start.serve(_observed(cell.work))
        except RunFailed as failure:
            self._kill()
            self._tell_unobserved(cell, RunFailed(doing + failure.reason, failure.detail))
            if doing:
                self.job.unobservable.update(one.cell for one in self.job.deployment.cells)
            return
        spans = concat(report.spans for report in reports)
        tables = account(spans, self.job.deployment.plan.placement)
        self.job.store.write_observed(cell.cell, tables)

    def _tell_unobserved(self, cell: PlannedCell, failure: RunFailed) -> None:
        name = cell.cell.name
        self.job.store.write_failure(f"{name}.observed", failure.detail)
        self.progress.note(f"{name}: communication could not be observed: {failure.reason}")

    # -- what is kept and told

    def _fail(self, run: Run, cell: PlannedCell, started_at: str, failure: RunFailed) -> None:
        self.job.store.write_failure(run.name, failure.detail)
        attempt = self.job.attempt(run, cell, self.number, started_at)
        self._keep(run, failed(attempt, failure.reason), {})

    def _keep(self, run: Run, kept: Measured, tables: Mapping[str, pa.Table]) -> None:
        self.job.store.write_run(run, MEASURED.make([kept]), tables)
        self.progress.finished(kept)

    def _tell(self, what: str, cell: PlannedCell | None = None) -> None:
        name = cell.cell.name if cell else ""
        self.progress.phase(self.job.deployment.deployment.name, name, what)


def _observed(work: Work) -> Work:
    """The same requests, all there at once and cut short, to be taken apart."""
    requests = tuple(
        replace(one, output_len=min(OBSERVED_TOKENS, one.output_len), arrival_s=0.0)
        for one in work.requests
    )
    return replace(work, requests=requests, observe=True)
