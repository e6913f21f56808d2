"""What a cell has trained, as a checkpoint: written once its runs are kept, which stay whatever
happens to it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.failures import RunFailed
from orchestrator.experiment import Run
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.workers import Session


def save(session: Session, cell: PlannedCell, is_trained: bool) -> None:
    """Have the checkpoint of a cell written. is_trained: the workers have just trained it; if not,
    they do so once more, and nothing else is kept of that. Where it fails, that is told."""
    job, name = session.job, cell.cell.name
    work = job.training_work(Run(cell.cell, 0, 0), cell)
    assert work.save is not None, "a checkpoint is asked for"
    if not is_trained:
        session.progress.note(f"{name}: has its runs; it trains once more, for its checkpoint")
    try:
        workers = session.prepared(cell)
        if not is_trained:
            session.tell("training for the checkpoint", cell)
            workers.serve(work)
        session.tell("writing the checkpoint", cell)
        workers.serve(replace(work, write=True))
    except RunFailed as failure:
        session.kill()
        job.unwritable.add(cell.cell)
        session.progress.note(
            f"{name}: its runs are kept, but no checkpoint was written to {work.save}: "
            f"{failure.reason}; once it can be, or with another --save-checkpoint, the same "
            "command trains once more, for the checkpoint alone"
        )
        job.store.write_failure(f"{name}.checkpoint", failure.detail)
        return
    job.keep_saved(work.save)
