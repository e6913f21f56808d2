"""The states that a run keeps to go on from: written by all ranks through torch's distributed
checkpoint, whatever the layout, and read under any other."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from strategies.errors import Refused
from workers.checkpoint_files import discard, missing
from workers.engines import training_state
from workers.engines.training.saving import write
from workers.engines.training_state import Read, Resumable, TrainingState
from workers.messages import EnginePlan, TrainingWork
from workers.training_records import TrainingStepRow

if TYPE_CHECKING:
    from workers.rank import RankContext


class States:
    """Of one run of a rank. seconds: what writing took so far. A state is for a run that is
    stopped, so one that cannot be written stops none: the one before it stays, and the next is
    tried."""

    def __init__(
        self, trainer: Resumable, context: RankContext, plan: EnginePlan, work: TrainingWork
    ) -> None:
        self._trainer, self._context, self._work = trainer, context, work
        self._begin = TrainingState.of(plan, work.tokens)
        self._folder = Path(work.state) if work.state else None
        self.seconds = 0.0
        self._due, self._failed = 0, list[tuple[int, str]]()  # (step, why)

    @property
    def lacking(self) -> str | None:
        """How many of those that were due are not written, and why; None: they all are."""
        if not self._failed:
            return None
        step, why = self._failed[-1]
        return (
            f"{len(self._failed)} of {self._due} states could not be written, the last of them "
            f"after step {step}: {why}"
        )

    def resume(self) -> tuple[int, list[TrainingStepRow]]:
        """Take the last whole state of this run, or the one that it begins with, if there is one.
        Returns the steps that were taken, and what was seen of those of this run."""
        if self._folder is not None:
            states = training_state.whole(self._folder)
            # A rank may see a folder later than others.
            last = self._context.smallest(training_state.step_of(states[-1]) if states else 0)
            if last:
                state = self._take(self._folder / training_state.name_of(last))
                return state.step, list(state.steps)
        if self._work.resume is not None:
            return self._take(Path(self._work.resume)).step, []
        return 0, []

    def keep(self, step: int, rows: Sequence[TrainingStepRow]) -> None:
        """Write the state after `step` steps, if it is time for that: every rank its part. rows:
        what was seen of the steps of this run."""
        due = self._folder is not None and self._work.interval > 0
        if not due or (step % self._work.interval and step < self._work.steps):
            return
        assert self._folder is not None
        began = time.perf_counter()
        state = replace(
            self._begin,
            step=step,
            updates=self._trainer.updates,
            loss_scale=self._trainer.loss_scale,
            steps=tuple(rows),
        )
        reason = _write(self._folder, state, self._trainer.state(), self._context)
        self.seconds += time.perf_counter() - began
        self._due += 1
        if reason is not None:
            self._failed.append((step, reason))

    def _take(self, folder: Path) -> TrainingState:
        """Give the trainer what is kept in a folder. Raises Refused where that is of another
        run."""
        state = training_state.read(folder)
        if reason := state.unlike(self._begin):
            raise Refused(f"{folder} cannot be gone on from: {reason}")
        self._trainer.restore(state, reader(folder))
        return state


class StateWriter(FileSystemWriter):
    """Torch's, which says of a full disk that it is one: its archives raise "unexpected pos"."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what this rank has. Raises OSError where the disk cannot take it."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def reader(folder: Path) -> Read:
    """What fills tensors, of DTensors this rank's part, with what is kept in a folder. Each rank
    reads by itself. It raises Refused for a folder of which a part is gone or spoiled: torch's own
    exception is no Exception."""

    def read(tensors: Mapping[str, Tensor]) -> None:
        wanted: dict[str, Any] = dict(tensors)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*single process.*")
                load_distributed(wanted, storage_reader=FileSystemReader(folder), no_dist=True)
        except CheckpointException as error:
            ((cause, _),) = error.failures.values()
            # Of a pickle torch has lines of advice, to trust the file for one.
            said = "" if isinstance(cause, UnpicklingError) else str(cause).partition("\n")[0]
            why = ": ".join(filter(None, (type(cause).__name__, said)))
            raise training_state.not_whole(folder, why) from error

    return read


def _write(
    folder: Path, state: TrainingState, tensors: Mapping[str, Tensor], context: RankContext
) -> str | None:
    """Write a state under another name, and rename it when every rank has written: what has the
    name is whole. Those before it are removed then. Returns why it could not be, as far as this
    rank knows, with nothing left of it; None: it is written, on every rank."""
    several, is_first = context.placement.num_ranks > 1, context.rank == 0
    target = folder / training_state.name_of(state.step)
    unfinished = folder / f".{target.name}.tmp"
    made = missing(folder)
    unseen = f"{target} is not seen by every rank; use a folder that all share"

    def begin() -> None:
        discard(unfinished, ())
        unfinished.mkdir(parents=True)

    def share() -> None:
        write(tensors, StateWriter(unfinished), several)

    def finish() -> None:
        training_state.write(state, unfinished)
        before = training_state.whole(folder)
        _sync(unfinished)
        os.replace(unfinished, target)
        _sync(folder)
        for old in before:
            shutil.rmtree(old, ignore_errors=True)

    def see() -> None:
        if not target.is_dir():
            raise Refused(unseen)

    for act, is_mine in ((begin, is_first), (share, True), (finish, is_first), (see, True)):
        reason = _tried(act) if is_mine else None
        # Every rank goes on, or none: the others would wait for one that failed.
        if not context.smallest(int(reason is None)):
            if is_first:
                discard(unfinished, made)
            return reason or unseen  # rank 0 knows what else may be
    return None


def _tried(act: Callable[[], None]) -> str | None:
    """None, or why that cannot be done."""
    try:
        act()
    except (OSError, Refused) as error:
        return str(error)
    return None


def _sync(folder: Path) -> None:
    """Have the names in a folder on disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
