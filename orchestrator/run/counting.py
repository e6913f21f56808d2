"""The kernels of a decode step counted by Nsight Compute, once the runs of a cell are made.

Each cell gets workers of its own, one of them under Nsight Compute. They serve the short work of an
observed run, and of their times nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.analysis.kernels import KERNELS, read_kernels, refusal, unknown
from orchestrator.cluster import nsight
from orchestrator.cluster.failures import RunFailed
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.observing import short
from orchestrator.run.workers import Session
from orchestrator.store.names import safe_name
from workers.messages import EnginePlan, RankReport
from workers.records import DECODE, STEPS, KernelRow

COUNTING_S = 3600.0  # for a rank to have a step counted
FAILED_S = 20.0  # for ncu to write, where a rank has failed under it


def count_kernels(session: Session, start: int, cells: Sequence[PlannedCell]) -> None:
    """Count the kernels of each of `cells` that asks for it after this start. That is no run of its
    own: where it fails, that is told."""
    for cell in cells:
        if session.job.is_uncounted(cell, start):
            _count(session, start, cell)


def _count(session: Session, start: int, cell: PlannedCell) -> None:
    job, name = session.job, f"{cell.cell.name}.s{start}"
    watched = Session(job, session.cluster, session.progress, _plan(session, name))
    try:
        kernels = _counted(watched, cell)
    except RunFailed as failure:
        job.uncountable.add(cell.cell)
        job.store.write_failure(f"{name}.counted", failure.detail or failure.reason)
        session.progress.note(f"{name}: its kernels were not counted: {failure.reason}")
        return
    finally:
        watched.kill()
    job.store.write_observed(cell.cell, start, {KERNELS.name: KERNELS.make(kernels)})
    if lacking := unknown(kernels):
        session.progress.note(f"{name}: Nsight Compute gave no {', '.join(lacking)}")


def _counted(watched: Session, cell: PlannedCell) -> list[KernelRow]:
    """Raises RunFailed where no kernel was counted."""
    try:
        workers = watched.prepared(cell)
        watched.tell("counting kernels", cell)
        reports = workers.serve(replace(short(cell.served), count=True))
    except RunFailed as failure:
        text = _said(watched)
        reason = refusal(text)
        raise RunFailed(reason, f"{failure.detail}\n{text}") if reason else failure from None
    rank, text = workers.group.counters()
    kernels = read_kernels(text, rank, _requests(reports, rank))
    if not kernels:
        raise RunFailed(refusal(text) or "Nsight Compute wrote none", text)
    return kernels


def _said(watched: Session) -> str:
    """What ncu wrote where a rank has failed under it, or it has started none."""
    if watched.workers is not None:
        return watched.workers.group.counters(FAILED_S)[1]
    here = Path(watched.plan.ncu_file) if watched.plan and watched.plan.ncu_file else None
    return here.read_text(errors="replace") if here is not None and here.exists() else ""


def _requests(reports: Sequence[RankReport], rank: int) -> int:
    """Requests of the fullest decode step of a rank, which is the one that is counted."""
    steps = STEPS.rows(next(report.steps for report in reports if report.rank == rank))
    return max((step.num_requests for step in steps if step.phase == DECODE), default=0)


def _plan(session: Session, name: str) -> EnginePlan:
    """The plan of workers that are counted: steps are launched kernel by kernel, as the profiler
    runs each by itself."""
    plan = session.job.deployment.plan
    folder = nsight.folder(session.job.store.folder, not session.cluster.embedded, "ncu")
    return replace(
        plan,
        ncu_file=str(folder / f"{safe_name(name)}.csv"),
        switches=replace(plan.switches, cuda_graphs="off"),
        timeout_s=max(plan.timeout_s, COUNTING_S),
    )
