"""How many requests a run has, where it is to last some seconds: pilots settle it before the first
start, one count for each load, so that every layout serves the same."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.analysis.throughput import throughput_of
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.failures import RunFailed
from orchestrator.experiment import Run
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.jobs import Job
from orchestrator.run.progress import Progress
from orchestrator.run.surroundings import settled_counts
from orchestrator.run.workers import BuildFailed, Session, requests_of
from orchestrator.store.folders import now
from workers.messages import RankReport

LEAST_BATCHES = 3  # requests of a run over those in flight: its ramp and drain are parts of it
MARGIN = 1.05  # by which a run may be faster than the pilot


def settle(jobs: Sequence[Job], cluster: Cluster, progress: Progress) -> None:
    """Give every cell whose requests are to be counted the count of its load: the one in the
    manifest, else the largest that the pilot of any layout asks for, which is then kept there.

    A pilot is no result. Where it fails, its cell or its deployment has failed. An ablated layout
    has none: it serves what the whole one does.
    """
    store = jobs[0].store
    known = settled_counts(store)
    needed: dict[str, list[int]] = defaultdict(list)
    for job in jobs:
        if job.deployment.deployment.ablation == "none":
            unwatched = replace(job.deployment.plan, nsys_dir=None)
            for load, count in _piloted(Session(job, cluster, progress, unwatched), known):
                needed[load].append(count)
    if needed:
        known = {**known, **{load: max(counts) for load, counts in needed.items()}}
        store.update_manifest(num_prompts=known)
    for job in jobs:
        job.deployment = job.deployment.settled(known)
        _fail_unsettled(Session(job, cluster, progress))


def needed_requests(seats: int, requests: int, duration: float, least: float) -> int:
    """Requests of a run of at least `least` seconds, where `requests` took `duration` seconds.

    seats: requests in flight. The count is a multiple of it, so that no layout ends with fewer in
    flight.
    """
    count = max(MARGIN * least / duration * requests, LEAST_BATCHES * seats)
    return seats * math.ceil(count / seats)


def _piloted(session: Session, known: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(load, requests) that this layout asks for, of each load that is not known."""
    cells = [
        one for one in session.job.deployment.cells if one.sized and one.cell.load not in known
    ]
    try:
        for cell in cells:
            count = _pilot(session, cell)
            if count is not None:
                yield cell.cell.load, count
        session.close()
    finally:
        session.kill()


def _pilot(session: Session, cell: PlannedCell) -> int | None:
    """Requests that a cell asks for; None where its pilot failed, or its layout was given up."""
    job, started_at = session.job, now()
    if cell.cell in job.given_up:
        return None
    try:
        workers = session.prepared(cell)
        started_at = now()
        session.tell("pilot", cell)
        return _asked_for(job, cell, workers.serve(cell.work))
    except BuildFailed as failure:
        session.fail_build(job.deployment.cells, 0, started_at, failure)
    except RunFailed as failure:
        _fail(session, cell, started_at, RunFailed(f"pilot: {failure.reason}", failure.detail))
    return None


def _asked_for(job: Job, cell: PlannedCell, reports: Sequence[RankReport]) -> int:
    """Requests that a run needs, after a pilot. Raises RunFailed where that made no token."""
    seats, count = cell.served.max_concurrency, len(cell.served.requests)
    num_gpus, least = job.deployment.plan.placement.num_ranks, job.experiment.min_duration
    made = throughput_of(requests_of(reports), seats, count, num_gpus)
    assert least is not None, "a cell is sized only under min_duration"
    if not made.duration:
        raise RunFailed("no request got a token")
    return needed_requests(seats, count, made.duration, least)


def _fail_unsettled(session: Session) -> None:
    """Keep as failed what no pilot has settled, unless its own has failed."""
    for cell in session.job.deployment.cells:
        if cell.sized is not None and cell.cell not in session.job.given_up:
            reason = f"pilot: no layout settled how many requests {cell.cell.load} has"
            _fail(session, cell, now(), RunFailed(reason))


def _fail(session: Session, cell: PlannedCell, started_at: str, failure: RunFailed) -> None:
    first = next(iter(session.job.lacking(cell, 0)), Run(cell.cell, 0, 0))
    session.fail(first, cell, started_at, failure)
