"""The loop over starts: what is skipped, which layout goes first, and what is written beside the
runs.

In each start every layout gets fresh workers and serves all of its cells, so layouts take turns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.analysis.load import summaries
from orchestrator.analysis.summary import MEASURED
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.errors import ClusterLost, Stop
from orchestrator.experiment import Experiment
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.run import manifest
from orchestrator.run.jobs import Job
from orchestrator.run.pilot import settle
from orchestrator.run.progress import Progress, UntilStopped
from orchestrator.run.schedule import Schedule
from orchestrator.run.serving import Start
from orchestrator.run.surroundings import check_surroundings
from orchestrator.run.workers import Session
from orchestrator.store.folders import folder_of, now
from orchestrator.store.store import Store
from workers.probes.gauges import Exposure


def run_experiment(
    planned: Sequence[PlannedDeployment],
    experiment: Experiment,
    progress: Progress,
    cluster: Cluster | None = None,
) -> Path:
    """Run what has no result yet and write the comparison. Returns the folder of the results.

    cluster: the one that was joined; None: a local Ray is started, if something is left to run.
    Raises UserError before anything is reserved where there are too few devices, or no run
    can be added to the folder. Raises SystemExit after a signal that stops (130 after Ctrl-C), with
    every finished run kept and nothing left running. A Ray that dies for good ends the runs and is
    told: what is finished is in the folder.
    """
    calibration = check_surroundings(experiment)
    store = Store(folder_of(experiment))
    block = _next_block(store)
    jobs = [Job(one, experiment, store, block, calibration) for one in planned]
    schedule = Schedule(jobs, experiment, store)
    progress.begin(
        schedule.left(), sum(job.completed(cell) for job in jobs for cell in job.deployment.cells)
    )
    kept = (
        f"Every finished run is kept in {store.folder}; the same command again goes on from there."
    )
    stop = Stop()
    try:
        with stop:
            if schedule.is_unfinished():
                _run(schedule, UntilStopped(progress, stop), cluster)
    except KeyboardInterrupt:
        progress.note(f"Stopped. {kept}")
        raise SystemExit(stop.status) from None
    except ClusterLost as lost:
        progress.note(f"Stopped: {lost}. {kept}")
        return store.folder
    finally:
        _write_comparison(store, experiment)
    store.update_manifest(finished_at=now())
    return store.folder


def _run(schedule: Schedule, progress: Progress, joined: Cluster | None) -> None:
    """Do what is left. A local Ray that dies is started once more, and the run in flight made
    again. Raises ClusterLost where it dies again, or is not ours."""
    try:
        _run_once(schedule, progress, joined)
    except ClusterLost as lost:
        if joined is not None:
            raise
        progress.note(f"{lost}; it is started once more, and the run in flight made again")
        _run_once(schedule, progress, None)


def _run_once(schedule: Schedule, progress: Progress, joined: Cluster | None) -> None:
    store, planned = schedule.store, [job.deployment for job in schedule.jobs]
    device, block = planned[0].plan.device, schedule.jobs[0].block
    ranks = max(one.plan.placement.num_ranks for one in planned)
    with _with_room(joined, device, ranks) as cluster:
        store.create()
        manifest.write(store, schedule.experiment, planned, cluster, device, block)
        progress.connected(cluster)
        settle(schedule.jobs, cluster, progress)
        _serve(schedule, cluster, progress)


def _serve(schedule: Schedule, cluster: Cluster, progress: Progress) -> None:
    """Give every layout its starts, in turns. Meanwhile Ray's metrics are told what is known of
    exposed communication."""
    exposure = Exposure()
    try:
        for job in schedule.jobs:
            exposure.tell(job.tags, job.exposed_shares())
        for number in range(schedule.experiment.start_limit):
            wanted = schedule.cells(number)
            for job in _rotated(schedule.jobs, number):
                if cells := job.unfinished(number, wanted):
                    Start(Session(job, cluster, progress), number).serve(cells)
                    exposure.tell(job.tags, job.exposed_shares())
    finally:
        exposure.stop()


def _rotated(jobs: Sequence[Job], number: int) -> list[Job]:
    """Another one goes first in each start, as a drift would favour the first one."""
    first = number % len(jobs)
    return [*jobs[first:], *jobs[:first]]


def _with_room(joined: Cluster | None, device: str, ranks: int) -> AbstractContextManager[Cluster]:
    """The cluster that was joined, if it has room; else a local Ray for as many ranks."""
    if joined is None:
        return connect(None, device, ranks)
    joined.check_room(device, ranks)
    return contextlib.nullcontext(joined)


def _next_block(store: Store) -> int:
    """The number of this command among those that made the runs: one more than that of any run that
    is kept."""
    kept = store.read(MEASURED.name)
    return 1 + max(kept["block"].to_pylist() if kept else [], default=-1)


def _write_comparison(store: Store, experiment: Experiment) -> None:
    runs = summaries(store, experiment.goodput)
    if runs:
        store.write_comparison(COMPARED.make(compare(runs, rulings(runs, experiment.difference))))
