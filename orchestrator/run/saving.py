"""What a cell has trained, as a checkpoint and as the last state of a run: the runs stay, whatever
happens to that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.analysis.training.rows import states_reason
from orchestrator.cluster.failures import RunFailed
from orchestrator.experiment import Run
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.workers import Session
from workers.checkpoint_files import UNFINISHED, discard, missing


def save(session: Session, cell: PlannedCell, is_trained: bool) -> None:
    """Have the checkpoint of a cell written. is_trained: the workers have just trained it; if not,
    they do so once more, and nothing else is kept of that. Where it fails, that is told."""
    job, name = session.job, cell.cell.name
    work = job.training_work(Run(cell.cell, 0, 0), cell)
    assert work.save is not None, "a checkpoint is asked for"
    folder = Path(work.save)
    made = missing(folder)
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
    finally:
        discard(folder / UNFINISHED, made)  # workers that died have not
    job.keep_saved(work.save)
    session.progress.note(f"{name}: its checkpoint is {folder}")


def keep_state(session: Session, run: Run, cell: PlannedCell) -> None:
    """Have a run that is kept go on to its last step once more, for the state there that could not
    be written, and keep nothing else of that. Where it fails again, that is told."""
    job = session.job
    job.tried.add(run)
    session.progress.note(f"{cell.cell.name}: has its runs; it trains once more, for a last state")
    session.tell("training for a last state", cell)
    try:
        reports = session.prepared(cell).serve(job.training_work(run, cell))
    except RunFailed as failure:
        session.kill()
        job.store.write_failure(f"{run.name}.state", failure.detail)
        tell_states(session, cell, failure.reason)
        return
    tell_states(session, cell, states_reason(reports))


def tell_states(session: Session, cell: PlannedCell, reason: str | None) -> None:
    """Say of a run that is kept that states of it are not, unless reason is None."""
    if reason is not None:
        session.progress.note(
            f"{cell.cell.name}: the run is kept, but {reason}; if its last state is not there, the "
            "same command trains on to it once it can be written"
        )
