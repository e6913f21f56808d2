"""The engine `torch` for training: DDP, FSDP2, DTensor and pipelining of torch, composed as the
placement says. The module imports without torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workers.device import device_name, peak_memory, reset_peak, synchronize
from workers.engines.training.support import refusal
from workers.engines.training_state import Resumable
from workers.messages import Built, EnginePlan, RankReport, TrainingWork
from workers.records import (
    STEPS,
    TRAINING_COLLECTIVES,
    TRAINING_STEPS,
    TrainingCollectiveRow,
    TrainingReport,
    TrainingStepRow,
)
from workers.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engines.training.states import States
    from workers.engines.training.trainer import StepResult
    from workers.rank import RankContext

# In the first step a pipeline tells its shapes, and in the second one DDP makes its buckets anew.
BEFORE_COUNTING = 2


class Trains(Resumable, Protocol):
    """What takes the optimizer steps of a rank; see `trainer.Trainer`."""

    gradient_bytes: int | None

    @property
    def replica(self) -> int:
        """Number of the part of the batch that is this rank's."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that it keeps."""
        ...

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of what its optimizer keeps."""
        ...

    def reset(self) -> None:
        """Take the first weights."""
        ...

    def step(self, tokens: Tensor, counting: AbstractContextManager[Any] = ...) -> StepResult:
        """Take a step."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained."""
        ...


class TorchTrainer:
    """One rank of a deployment that trains."""

    processes: Literal["per_rank"] = "per_rank"

    def __init__(self) -> None:
        self._trainer: Trains | None = None
        self._context: RankContext | None = None
        self._plan: EnginePlan | None = None
        self._traffic: list[TrainingCollectiveRow] | None = None

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why this engine cannot train the plan."""
        return refusal(plan)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """What its collectives go through."""
        return {"allreduce": ("gloo" if plan.device == "cpu" else "nccl",)}

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Cut the model and load the first weights. Raises torch.OutOfMemoryError."""
        start = time.perf_counter()
        self._context, self._plan = context, plan
        self._trainer = self._made(context, plan)
        self._trainer.reset()
        synchronize(context.device)
        return Built(
            rank=context.rank,
            load_s=time.perf_counter() - start,
            capture_s=None,
            weight_bytes=self._trainer.weight_bytes,
            kv_tokens=None,
            device_name=device_name(context.device),
            versions=versions(),
        )

    def run(self, work: TrainingWork) -> RankReport:
        """Train from the first weights, or from where the run was stopped. Before the first run, a
        few steps are taken, and what the last one communicates is counted: counting would slow the
        timed ones."""
        from workers.engines.training.watching import watched

        assert self._context is not None, "build first"
        with watched(self._context):
            return self._run(work)

    def _run(self, work: TrainingWork) -> RankReport:
        from workers.engines.training.states import States

        assert self._trainer is not None
        assert self._context is not None
        assert self._plan is not None
        trainer, context = self._trainer, self._context
        if self._traffic is None:
            self._count_step(work)
        trainer.reset()
        states = States(trainer, context, self._plan, work)
        taken, rows = states.resume()
        context.barrier()
        reset_peak([context.device])
        began = self._take_steps(work, states, taken, rows)
        if work.save is not None:
            trainer.save(Path(work.save))
        return self._report(rows, began, states.seconds)

    def _take_steps(
        self, work: TrainingWork, states: States, taken: int, rows: list[TrainingStepRow]
    ) -> float:
        """Take the steps that are left of a run after `taken`, and enter them in `rows`. Returns
        when that began. The clock of the rows goes on from the last one, and stands while states
        are written."""
        assert self._trainer is not None
        assert self._context is not None
        standing = self._context.progress.standing
        standing.steps(taken)
        began, before, is_first = time.perf_counter(), rows[-1].end_s if rows else 0.0, bool(taken)
        for step, tokens in enumerate(self._batches(work, work.steps, taken), taken):
            result = self._trainer.step(tokens)
            synchronize(self._context.device)
            rows.append(
                TrainingStepRow(
                    step=step,
                    loss=result.loss,
                    grad_norm=result.grad_norm,
                    end_s=before + time.perf_counter() - began - states.seconds,
                    resumed=is_first,
                )
            )
            is_first = False
            standing.steps(step + 1)
            states.keep(step + 1, rows)
        return began

    def close(self) -> None:
        """Free the model and its optimizer."""
        if self._trainer is not None:
            from torch.distributed.tensor import debug

            clear: Any = debug._clear_sharding_prop_cache
            clear()  # it holds process groups, of which there may be others
        self._trainer = self._context = None

    def _made(self, context: RankContext, plan: EnginePlan) -> Trains:
        """What trains this rank's share."""
        from workers.engines.training.trainer import Trainer

        return Trainer(context.rank, plan, context.device)

    def _count_step(self, work: TrainingWork) -> None:
        from workers.engines.training.counting import Counting

        assert self._trainer is not None
        assert self._context is not None
        counting = Counting(self._context.placement, self._context.rank)
        *before, counted = self._batches(work, BEFORE_COUNTING + 1)
        for tokens in before:
            self._trainer.step(tokens)
        self._trainer.step(counted, counting)
        self._traffic = counting.rows(self._context.rank)

    def _batches(self, work: TrainingWork, steps: int, first: int = 0) -> Iterator[Tensor]:
        """This replica's sequences of each step, from number `first` on."""
        from workers.engines.training.batches import batches

        assert self._trainer is not None
        assert self._plan is not None
        return batches(self._plan, work, self._trainer.replica, range(first, steps))

    def _report(self, rows: list[TrainingStepRow], began_s: float, states_s: float) -> RankReport:
        assert self._trainer is not None
        assert self._context is not None
        rank = self._context.rank
        training = TrainingReport(
            steps=TRAINING_STEPS.make(rows) if rank == 0 else None,
            traffic=TRAINING_COLLECTIVES.make(self._traffic or ()),
            weight_bytes=self._trainer.weight_bytes,
            gradient_bytes=self._trainer.gradient_bytes,
            optimizer_bytes=self._trainer.optimizer_bytes,
            states_s=states_s,
        )
        return RankReport(
            rank=rank,
            requests=None,
            steps=STEPS.make(()),
            collectives=None,
            peak_memory_bytes=peak_memory([self._context.device]),
            began_s=began_s,
            training=training,
        )
