"""The loop over starts: what is skipped, which layout goes first, and what is written beside the
runs.

In each start every layout gets fresh workers and serves all of its cells, so layouts take turns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.analysis.comparing.ablation import TECHNIQUE_EFFECTS, technique_effects
from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.analysis.load import summaries
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.errors import ClusterLost, Stop, UserError
from orchestrator.experiment import Experiment
from orchestrator.experiment.places import place
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.run import manifest
from orchestrator.run.jobs import Job
from orchestrator.run.origin import origin_of
from orchestrator.run.pilot import settle
from orchestrator.run.progress import Progress, UntilStopped
from orchestrator.run.schedule import Schedule
from orchestrator.run.serving import Start
from orchestrator.run.surroundings import check_surroundings
from orchestrator.run.workers import Session
from orchestrator.store.folders import folder_of, now
from orchestrator.store.schema import OUTCOME_TABLES
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
    Raises UserError before anything is reserved where there are too few devices, no run can be
    added to the folder, or another driver is adding some. Raises SystemExit after a signal that
    stops (130 after Ctrl-C), with every finished run kept and nothing left running. A Ray that dies
    for good ends the runs and is told: what is finished is in the folder.
    """
    store = Store(folder_of(experiment))
    schedule = _schedule(store, planned, experiment, cluster)
    progress.begin(schedule.begun())
    where = place(store.folder)
    if where != str(store.folder):  # what was not sent yet is in the spool
        where = f"{where}, or {store.folder} where that did not answer"
    kept = f"Every finished run is kept in {where}; the same command again goes on from there."
    stop = Stop()
    try:
        with stop:
            if not schedule.is_unfinished():
                _tell_of_nothing_more(experiment, progress)
                _compare_again(store, experiment, progress)
                return store.folder
            with store.opened():
                # Once more: until now another driver may have written here.
                schedule = _schedule(store, planned, experiment, cluster)
                _run_and_compare(schedule, UntilStopped(progress, stop), cluster, stop)
    except KeyboardInterrupt:
        progress.note(f"Stopped. {kept}")
        raise SystemExit(stop.status) from None
    except ClusterLost as lost:
        progress.note(f"Stopped: {lost}. {kept}")
    return store.folder


def _schedule(
    store: Store,
    planned: Sequence[PlannedDeployment],
    experiment: Experiment,
    cluster: Cluster | None,
) -> Schedule:
    """What is to be run. Raises UserError where that cannot be: see `check_surroundings`."""
    calibration = check_surroundings(store, experiment, planned, cluster)
    block, origin = _next_block(store), origin_of(planned[0].plan.device, cluster)
    node = origin.node_among(store.manifest().get("blocks", ())[:block])
    jobs = [Job(one, experiment, store, block, node, calibration) for one in planned]
    return Schedule(jobs, experiment, store, min(origin.kinds, default=None))


def _run_and_compare(
    schedule: Schedule, progress: Progress, joined: Cluster | None, stop: Stop
) -> None:
    """Do what is left and keep the comparison, also of what there is after a failure. A signal
    leaves no time for it: it is worked out when results are read."""
    store = schedule.store
    store.drop_comparison()  # what is there is of fewer runs
    try:
        _run(schedule, progress, joined)
        store.update_manifest(finished_at=now())
    finally:
        if not stop.is_near:
            _write_comparison(store, schedule.experiment, progress)


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
    with with_room(joined, device, ranks) as cluster:
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


def with_room(joined: Cluster | None, device: str, ranks: int) -> AbstractContextManager[Cluster]:
    """The cluster that was joined, if it has room; else a local Ray for as many ranks."""
    if joined is None:
        return connect(None, device, ranks)
    joined.check_room(device, ranks)
    return contextlib.nullcontext(joined)


def _next_block(store: Store) -> int:
    """The number of this command among those that made the runs: one more than that of any run that
    is kept."""
    kept = [table for name in OUTCOME_TABLES if (table := store.read(name)) is not None]
    return 1 + max((block for table in kept for block in table["block"].to_pylist()), default=-1)


def _tell_of_nothing_more(experiment: Experiment, progress: Progress) -> None:
    """Say that finished results do not come to hold more than was kept of their runs."""
    more = {"--save-detailed": experiment.save_detailed, "--save-spans": experiment.save_spans}
    if asked := [option for option, is_asked in more.items() if is_asked]:
        progress.note(
            f"every run is there already, with what was kept of it then: {' and '.join(asked)} "
            "would add to new runs alone, which --force makes"
        )


def _compare_again(store: Store, experiment: Experiment, progress: Progress) -> None:
    """Keep the comparison of finished results, as the service levels may be others; see
    `_write_comparison`."""
    try:
        with store.opened():
            _write_comparison(store, experiment, progress)
    except UserError as error:
        progress.note(f"the comparison was not kept: {error}")


def _write_comparison(store: Store, experiment: Experiment, progress: Progress) -> None:
    """Keep the comparison, as the one driver that writes here. Where it cannot be, nothing is lost:
    it is worked out again when results are read."""
    runs = summaries(store, experiment.levels)
    try:
        if runs:
            shown = rulings(runs, experiment.difference)
            found = technique_effects(runs)
            ablation = TECHNIQUE_EFFECTS.make(found) if found else None
            store.write_comparison(COMPARED.make(compare(runs, shown)), ablation)
    except UserError as error:
        progress.note(f"the comparison was not kept: {error}")
