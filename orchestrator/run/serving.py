"""One start of one deployment: which of its runs are made, and that each is kept.

A failed run costs its workers and the rest of its cell; the next cell gets fresh ones. A failed
build costs its deployment. Every finished run is on disk before the next one starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.summary import measured
from orchestrator.analysis.training.rows import trained, training_tables
from orchestrator.cluster.failures import RunFailed
from orchestrator.errors import ClusterLost
from orchestrator.experiment import Run
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.counting import count_kernels
from orchestrator.run.jobs import Job
from orchestrator.run.observing import observe
from orchestrator.run.saving import keep_state, save, tell_states
from orchestrator.run.workers import BuildFailed, Session, Workers, requests_of
from orchestrator.store.folders import now
from workers.messages import TrainingWork

RETRIES = 3  # of a run that has lost a node


@dataclass(frozen=True, slots=True)
class Start:
    """Start `number` of one deployment, which has no workers yet."""

    session: Session
    number: int

    @property
    def job(self) -> Job:
        """The deployment, and what of it has a result."""
        return self.session.job

    def serve(self, cells: Sequence[PlannedCell]) -> None:
        """Make the runs that `cells` lack in this start, cell by cell; then observe the cells.

        The runs of a cell are of one group of workers, whatever happens to other cells. Its
        checkpoint is written when they are kept. Observed runs come last, so that no timed run
        follows a profiled one in the same process; kernels are counted in processes of their own.
        Leaves no worker behind.
        """
        try:
            for cell in cells:
                self._serve_cell(cell, cells)
            observe(self.session, self.number, cells)
            self.session.close()
        finally:
            self.session.kill()
        count_kernels(self.session, self.number, cells)

    def _serve_cell(self, cell: PlannedCell, cells: Sequence[PlannedCell]) -> None:
        missing = self.job.missing(cell, self.number)
        for run in missing:
            if not self._make(run, cell, cells):
                return
        if self.job.is_unsaved(cell, self.number):
            save(self.session, cell, is_trained=bool(missing))
        for run in self.job.stateless(cell, self.number):
            keep_state(self.session, run, cell)

    def _make(self, run: Run, cell: PlannedCell, cells: Sequence[PlannedCell]) -> bool:
        """Whether the next run of the cell is to follow. A run that has lost a node is made again,
        where that is asked for, as long as there are tries left."""
        retries = RETRIES if self.job.experiment.on_node_loss == "retry" else 0
        for left in range(retries, -1, -1):
            started_at = now()
            try:
                workers = self.session.prepared(cell)
                started_at = now()
                self._run(run, cell, workers, started_at)
                return True
            except ClusterLost:
                self.job.tried.discard(run)
                raise
            except RunFailed as failure:
                if left and failure.lost_nodes:
                    self.session.retry(run, cell, started_at, failure)
                elif isinstance(failure, BuildFailed):
                    self.session.fail_build(cells, self.number, started_at, failure)
                    return False
                else:
                    self.session.fail(run, cell, started_at, failure)
                    return False
        raise AssertionError("the last try returns")

    def _run(self, run: Run, cell: PlannedCell, workers: Workers, started_at: str) -> None:
        self.job.tried.add(run)
        asked = self.job.experiment
        starts = max(asked.num_starts, self.number + 1)
        place = f"start {self.number + 1}/{starts} run {run.index + 1}/{asked.num_runs}"
        self.session.tell(place, cell)
        if isinstance(cell.work, TrainingWork):
            self._train(run, cell, workers, started_at)
            return
        attempt = self.job.attempt(run, cell, started_at, workers.building.device_name)
        reports = workers.serve(cell.work)
        requests = requests_of(reports)
        kept = measured(attempt, workers.building, reports, requests)
        self.session.keep(run, kept, self.job.kept_tables(requests, reports))
        self._note_short(cell, kept.throughput.duration)

    def _train(self, run: Run, cell: PlannedCell, workers: Workers, started_at: str) -> None:
        building = workers.building
        attempt = self.job.training_attempt(run, cell, started_at, building.device_name)
        reports = workers.serve(self.job.training_work(run, cell))
        kept = trained(attempt, building.built, building.build_s, building.device_name, reports)
        self.session.keep(run, kept, training_tables(reports))
        tell_states(self.session, cell, kept.startup.states_reason)

    def _note_short(self, cell: PlannedCell, duration: float | None) -> None:
        """Say once of a cell that its runs are shorter than was asked for."""
        least = self.job.experiment.min_duration
        if least and duration and duration < least and cell.cell not in self.job.short:
            self.job.short.add(cell.cell)
            self.session.progress.note(
                f"{cell.cell.name}: a run took {duration:.1f} s, less than the {least:g} s of "
                f"--min-duration: its {len(cell.served.requests)} requests were settled by the "
                "pilots, and every layout serves the same"
            )
