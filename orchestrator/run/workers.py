"""The workers of one deployment while it has the devices: fresh ones, and fresh ones again after a
failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from orchestrator.analysis.summary import MEASURED, Building, Measured, failed
from orchestrator.analysis.throughput import first_token_s
from orchestrator.analysis.training.rows import TRAINED, Trained
from orchestrator.analysis.training.rows import failed as not_trained
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.group import WorkerGroup
from orchestrator.cluster.room import Patience
from orchestrator.experiment import Cell, Run
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.jobs import Job
from orchestrator.run.progress import Progress
from orchestrator.store.arrow_files import concat
from workers.messages import Built, EnginePlan, RankReport, TrainingWork, Work

BACK_S = 60.0  # for a node that is gone to come back, where runs that lose one are made again


class BuildFailed(RunFailed):
    """No workers could be started, or they could not be built."""


@dataclass(slots=True)
class Workers:
    """A group of workers that is built, and what that took.

    asked_at: when the actors were asked for, on the monotonic clock. warm: cells that were warmed
    up in it.
    """

    group: WorkerGroup
    building: Building
    asked_at: float
    timeout_s: float
    warm: set[Cell] = field(default_factory=set)

    @classmethod
    def of(
        cls, job: Job, plan: EnginePlan, cluster: Cluster, tell: Callable[[str], None]
    ) -> Workers:
        """Start and build the workers of a job's deployment by `plan`. tell: gets what is waited
        for.

        Raises BuildFailed, with nothing left, where that does not succeed.
        """
        asked_at, asked = time.monotonic(), job.deployment.deployment
        # Nsight Compute takes far longer than a run
        timeout_s = job.experiment.timeout if plan.ncu_file is None else plan.timeout_s
        name = f"{asked.model}/{asked.strategy}"
        back_s = BACK_S if job.experiment.on_node_loss == "retry" else 0.0
        patience = Patience(job.experiment.wait_for_resources, tell, back_s)
        try:
            group = WorkerGroup.start(cluster, name, plan, asked.engine, job.tags, patience)
            try:
                began = time.monotonic()
                built = group.build(timeout_s)
            except BaseException:
                group.kill()
                raise
        except RunFailed as failure:
            raise BuildFailed(
                f"build: {failure.reason}", failure.detail, failure.lost_nodes
            ) from failure
        device_name = "cpu" if plan.device == "cpu" else built[0].device_name
        took = time.monotonic() - began
        building = Building(built, device_name, took, nodes=group.nodes)
        return cls(group, building, asked_at, timeout_s)

    def serve(self, work: Work | TrainingWork) -> list[RankReport]:
        """Do `work` on every rank. Raises RunFailed as soon as one rank has failed."""
        asked = time.monotonic()
        reports = self.group.run(work, self.timeout_s)
        if self.building.startup_s is None and isinstance(work, Work):
            startup_s = asked - self.asked_at + first_token_s(reports)
            self.building = replace(self.building, startup_s=startup_s)
        return reports


@dataclass(slots=True)
class Session:
    """One deployment's time on the devices, and what is kept and told of its runs.

    plan: by which the workers are built; None: that of the deployment. workers: None before the
    first build and after a failure.
    """

    job: Job
    cluster: Cluster
    progress: Progress
    plan: EnginePlan | None = None
    workers: Workers | None = None

    def prepared(self, cell: PlannedCell) -> Workers:
        """Workers in which `cell` is warmed up, fresh ones where there are none.

        Raises BuildFailed, or RunFailed where it is the warming up that fails.
        """
        workers = self._started()
        if cell.cell not in workers.warm:
            self._warm_up(workers, cell)
        return workers

    def close(self) -> None:
        """Let the workers end by themselves, and then end them."""
        if self.workers is not None:
            self.workers.group.close()
        self.workers = None

    def kill(self) -> None:
        """End the workers at once."""
        if self.workers is not None:
            self.workers.group.kill()
        self.workers = None

    def _started(self) -> Workers:
        if self.workers is None:
            self.tell("building")
            plan = self.plan or self.job.deployment.plan
            self.workers = Workers.of(self.job, plan, self.cluster, self.progress.note)
            self._keep_settings(self.workers.building.built)
        return self.workers

    def _keep_settings(self, built: Sequence[Built]) -> None:
        """Keep what the engine says of how it was built, and tell a remark."""
        remark = next((one.remark for one in built if one.remark), None)
        self.job.keep_settings(built[0].settings | ({"remark": remark} if remark else {}))
        if remark:
            self.progress.note(f"{self.job.deployment.deployment.name}: {remark}")

    def _warm_up(self, workers: Workers, cell: PlannedCell) -> None:
        for _ in range(self.job.experiment.num_warmups):
            self.tell("warming up", cell)
            try:
                workers.serve(cell.warmup)
            except RunFailed as failure:
                raise failure.within("warm-up") from failure
        workers.warm.add(cell.cell)

    # -- what is kept and told

    def keep(self, run: Run, kept: Measured | Trained, tables: Mapping[str, pa.Table]) -> None:
        """Keep a run that has ended, its tables first, and tell."""
        self._write(run, kept, tables)
        self.progress.finished(kept)

    def _write(self, run: Run, kept: Measured | Trained, tables: Mapping[str, pa.Table]) -> None:
        row = TRAINED.make([kept]) if isinstance(kept, Trained) else MEASURED.make([kept])
        self.job.store.write_run(run, row, tables)

    def fail(self, run: Run, cell: PlannedCell, started_at: str, failure: RunFailed) -> None:
        """End the workers, keep `run` as failed and leave the rest of its cell to the next
        command."""
        self.kill()
        self.progress.finished(self._keep_failed(run, cell, started_at, failure))
        self.job.give_up([cell])

    def retry(self, run: Run, cell: PlannedCell, started_at: str, failure: RunFailed) -> None:
        """End the workers and keep `run` as failed; it has not ended, for it is made again."""
        self.kill()
        self._keep_failed(run, cell, started_at, failure)
        self.progress.note(f"{cell.cell.name}: {failure.reason}; the run is made again")

    def fail_build(
        self, cells: Sequence[PlannedCell], start: int, started_at: str, failure: BuildFailed
    ) -> None:
        """Keep every run that `cells` lack, from number `start` of their starts on, as failed, and
        leave the deployment to the next command."""
        for cell in cells:
            for run in self.job.lacking(cell, start):
                self.progress.finished(self._keep_failed(run, cell, started_at, failure))
        self.job.give_up(self.job.deployment.cells)

    def _keep_failed(
        self, run: Run, cell: PlannedCell, started_at: str, failure: RunFailed
    ) -> Measured | Trained:
        self.job.store.write_failure(run.name, failure.detail)
        self.cluster.keep_logs(failure.reason)
        kept: Measured | Trained
        if isinstance(cell.work, TrainingWork):
            kept = not_trained(self.job.training_attempt(run, cell, started_at), failure.reason)
        else:
            kept = failed(self.job.attempt(run, cell, started_at), failure.reason)
        self._write(run, kept, {})
        return kept

    def tell(self, what: str, cell: PlannedCell | None = None) -> None:
        """Say what begins now."""
        name = cell.cell.name if cell else ""
        self.progress.phase(self.job.deployment.deployment.name, name, what)


def requests_of(reports: Sequence[RankReport]) -> pa.Table:
    """The requests of a run, table REQUESTS by index. Raises RunFailed where there are none."""
    requests = concat(report.requests for report in reports)
    if requests is None:
        raise RunFailed("no rank reported any request")
    return requests.sort_by("request_index")
