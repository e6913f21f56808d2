"""The loop over deployments: what is skipped, whose turn it is, and what is written beside the
runs.

Cells of a deployment take turns, run by run, and where starting anew is cheap so do deployments.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.analysis.load import summaries
from orchestrator.analysis.summary import MEASURED
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.errors import INTERRUPTED
from orchestrator.experiment import Experiment
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.run import manifest
from orchestrator.run.interleaving import Interleaving
from orchestrator.run.jobs import Job
from orchestrator.run.progress import Progress
from orchestrator.run.surroundings import check_surroundings
from orchestrator.run.turn import Turn
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
    can be added to the folder. Raises SystemExit(130) after Ctrl-C, with every finished run kept
    and nothing left running.
    """
    calibration = check_surroundings(experiment)
    store = Store(folder_of(experiment))
    jobs = [Job(deployment, experiment, store, calibration) for deployment in planned]
    left = sum(len(job.missing(cell)) for job in jobs for cell in job.deployment.cells)
    progress.begin(
        left, sum(len(job.throughputs(cell)) for job in jobs for cell in job.deployment.cells)
    )
    todo = [job for job in jobs if job.unfinished()]
    try:
        if todo:
            _run(todo, experiment, store, progress, cluster)
    except KeyboardInterrupt:
        progress.note(
            f"Stopped. Every finished run is kept in {store.folder}; the same command again goes "
            "on from there."
        )
        raise SystemExit(INTERRUPTED) from None
    finally:
        _write_comparison(store, experiment)
    store.update_manifest(finished_at=now())
    return store.folder


def _run(
    jobs: Sequence[Job],
    experiment: Experiment,
    store: Store,
    progress: Progress,
    joined: Cluster | None,
) -> None:
    device = jobs[0].deployment.plan.device
    ranks = max(job.deployment.plan.placement.num_ranks for job in jobs)
    with _with_room(joined, device, ranks) as cluster:
        store.create()
        cells = [cell.cell for job in jobs for cell in job.deployment.cells]
        manifest.write(store, experiment, cells, cluster, device)
        progress.connected(cluster)
        asked = "no" if experiment.nsys else experiment.interleave
        _take_turns(jobs, _next_turn(store), cluster, progress, Interleaving(asked, len(jobs)))


def _take_turns(
    jobs: Sequence[Job],
    first: int,
    cluster: Cluster,
    progress: Progress,
    interleaving: Interleaving,
) -> None:
    """Give each job its turn, again and again, until none has anything left to do.

    first: number of the first turn. Meanwhile Ray's metrics are told what is known of exposed
    communication.
    """
    exposure = Exposure()
    try:
        for job in jobs:
            exposure.tell(job.tags, job.exposed_shares())
        for number in itertools.count(first):
            todo = [job for job in jobs if job.unfinished()]
            if not todo:
                break
            for job in _rotated(todo, number):
                Turn(job, number, cluster, progress).serve(interleaving)
                exposure.tell(job.tags, job.exposed_shares())
    finally:
        exposure.stop()


def _rotated(jobs: list[Job], number: int) -> list[Job]:
    """Another one goes first in each turn, as a drift would favour the first one."""
    first = number % len(jobs)
    return jobs[first:] + jobs[:first]


def _with_room(joined: Cluster | None, device: str, ranks: int) -> AbstractContextManager[Cluster]:
    """The cluster that was joined, if it has room; else a local Ray for as many ranks."""
    if joined is None:
        return connect(None, device, ranks)
    joined.check_room(device, ranks)
    return contextlib.nullcontext(joined)


def _next_turn(store: Store) -> int:
    """The number of the next turn of layouts: one more than that of any run that is kept."""
    kept = store.read(MEASURED.name)
    return 1 + max(kept["block"].to_pylist() if kept else [], default=-1)


def _write_comparison(store: Store, experiment: Experiment) -> None:
    runs = summaries(store, experiment.goodput)
    if runs:
        store.write_comparison(COMPARED.make(compare(runs, rulings(runs, experiment.difference))))
