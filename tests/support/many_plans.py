"""The process of one rank that serves many plans without meeting the others anew for each."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from workers import engines
from workers.actor import Worker
from workers.engines.training.counting import axes_by_operation
from workers.engines.training.engine import TorchTrainer
from workers.engines.training.observing import MARKS, NODE, WANTED
from workers.messages import EnginePlan, RankReport, TrainingWork, Work
from workers.probes.trace_files import exported


class Rank(Worker):
    """A worker of the pool."""

    def standing(self) -> tuple[int, int]:
        """Its process, and the descriptor under which that keeps where it stands."""
        return os.getpid(), self._progress.standing.fd

    def kept(self) -> tuple[int, int]:
        """Bytes of tensors that Python still knows of, and process groups."""
        gc.collect()
        tensors = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
            for one in gc.get_objects()
            if type(one) in (torch.Tensor, torch.nn.Parameter)
        }
        return sum(tensors.values()), len(dist.distributed_c10d._world.pg_map)

    def policies(self) -> dict[int, tuple[str, int]]:
        """Of each thread of this process its name, and how the system gives it a core; the first
        one is under 0 too."""
        found = {0: ("main", os.sched_getscheduler(os.getpid()))}
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                name, number = (thread / "comm").read_text().strip(), int(thread.name)
                found[number] = name, os.sched_getscheduler(number)
        return found

    def count_nothing(self) -> None:
        """Have the training that was built count nothing before its first run."""
        assert isinstance(self._engine, TorchTrainer)
        self._engine._traffic = []

    def marked(self, work: TrainingWork) -> tuple[list[set[str]], dict[str, set[str | None]]]:
        """Of each node of a backward pass, the ranges in which it began by the marks of the host;
        and what each operation of a step is over."""
        engine = self._engine
        assert isinstance(engine, TorchTrainer)
        assert engine._trainer is not None
        engine._count_step(work)
        (tokens,) = engine._batches(work, 1)
        MARKS.forget()
        with torch.profiler.profile() as profiler, MARKS.kept():
            engine._trainer.step(tokens)
        found = exported(profiler, WANTED, time.monotonic() + 60)
        marks = [(one.name, one.start - 50, one.end + 50) for one in MARKS.events(found.origin)]
        nodes = [one.start for one in found.events if one.name.startswith(NODE)]
        within = [{name for name, begin, end in marks if begin <= at <= end} for at in nodes]
        return within, axes_by_operation(engine._journal)

    def serve_many(
        self, engine: str, jobs: list[tuple[EnginePlan, Work]], address: tuple[str, int]
    ) -> list[RankReport | str]:
        """The report of each job, or the error that it ended with. All have one mesh."""
        first = jobs[0][0]
        store = self._join(address) if first.placement.num_ranks > 1 else None
        self._context = self._connect(first, store)
        try:
            return [self._served(engine, plan, work) for plan, work in jobs]
        finally:
            self.close()

    def _served(self, name: str, plan: EnginePlan, work: Work) -> RankReport | str:
        assert self._context is not None
        self._context.placement = plan.placement
        engine = engines.of_plan(name, plan)
        try:
            engine.build(self._context, plan)
            return engine.run(work)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            engine.close()
