"""The engine `torch` for training: DDP, FSDP2, DTensor and pipelining of torch, composed as the
placement says. The module imports without torch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workers.device import device_name, peak_memory, reset_peak, synchronize
from workers.engines.training.support import refusal
from workers.messages import Built, EnginePlan, RankReport, TrainingWork
from workers.records import (
    STEPS,
    TRAINING_COLLECTIVES,
    TRAINING_OVERLAPS,
    TRAINING_PARTS,
    TRAINING_STEPS,
    TrainingCollectiveRow,
    TrainingReport,
    TrainingStepRow,
)
from workers.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engines.training.counting import Issued
    from workers.engines.training.trainer import StepResult
    from workers.rank import RankContext

# Auto: an update of a parameter is one kernel on GPUs. On: also on CPUs, and layers are compiled.
# Off: neither.
FUSION = ("auto", "off", "on")
# Steps of an observed run: unprofiled ones, then profiled ones.
TIMED, PROFILED = 3, 3
READING_S = 300.0  # for what the profiler wrote
# In the first step a pipeline tells its shapes, and in the second one DDP makes its buckets anew.
BEFORE_COUNTING = 2


class Trains(Protocol):
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
        self._journal: Sequence[Issued] = ()

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why this engine cannot train the plan."""
        return refusal(plan)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """What its collectives go through, and what is fused."""
        return {"allreduce": ("gloo" if plan.device == "cpu" else "nccl",), "fusion": FUSION}

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
        """Train from the first weights. Before the first run, a few steps are taken, and what the
        last one communicates is counted: counting would slow the timed ones."""
        assert self._trainer is not None, "build first"
        assert self._context is not None
        assert self._plan is not None
        trainer, context = self._trainer, self._context
        if self._traffic is None:
            self._count_step(work)
        trainer.reset()
        if work.observe:
            return self._observed(work)
        batches = self._batches(work, work.steps)
        reset_peak([context.device])
        context.barrier()
        began, rows = time.perf_counter(), []
        for step, tokens in enumerate(batches):
            result = trainer.step(tokens)
            synchronize(context.device)
            rows.append(
                TrainingStepRow(
                    step=step,
                    loss=result.loss,
                    grad_norm=result.grad_norm,
                    end_s=time.perf_counter() - began,
                )
            )
        if work.save is not None:
            trainer.save(Path(work.save))
        return self._report(rows, began)

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
        self._traffic, self._journal = counting.rows(self._context.rank), counting.journal
        if self._plan is not None and self._plan.ablation == "comm":
            self._traffic = []  # its calls move nothing

    def _observed(self, work: TrainingWork) -> RankReport:
        """Take a few steps apart, after others of the same that are not profiled."""
        from workers.engines.training.observed import overlaps_of, parts_of
        from workers.engines.training.observing import Watch

        assert self._trainer is not None
        assert self._context is not None
        trainer, context, began = self._trainer, self._context, time.perf_counter()
        watch = Watch(context.placement, context.rank, context.device, self._journal)
        batches = self._batches(work, TIMED + PROFILED)
        context.barrier()
        timed = [self._seconds(tokens) for tokens in itertools.islice(batches, TIMED)]
        context.barrier()
        with watch.watching():
            for number, tokens in enumerate(batches):
                with watch.step(number):
                    trainer.step(tokens)
                    synchronize(context.device)
        steps = watch.steps(time.monotonic() + READING_S)
        report = self._report([], began)
        assert report.training is not None
        training = replace(
            report.training,
            parts=TRAINING_PARTS.make([parts_of(context.rank, context.placement, steps, timed)]),
            overlaps=TRAINING_OVERLAPS.make(overlaps_of(context.rank, steps)),
        )
        return replace(report, training=training)

    def _seconds(self, tokens: Tensor) -> float:
        """How long a step takes."""
        assert self._trainer is not None
        assert self._context is not None
        began = time.perf_counter()
        self._trainer.step(tokens)
        synchronize(self._context.device)
        return time.perf_counter() - began

    def _batches(self, work: TrainingWork, steps: int) -> Iterator[Tensor]:
        """This replica's sequences of each step."""
        from workers.engines.training.batches import batches

        assert self._trainer is not None
        assert self._plan is not None
        return batches(self._plan, work, self._trainer.replica, steps)

    def _report(self, rows: list[TrainingStepRow], began_s: float) -> RankReport:
        assert self._trainer is not None
        assert self._context is not None
        rank = self._context.rank
        training = TrainingReport(
            steps=TRAINING_STEPS.make(rows) if rank == 0 else None,
            traffic=TRAINING_COLLECTIVES.make(self._traffic or ()),
            weight_bytes=self._trainer.weight_bytes,
            gradient_bytes=self._trainer.gradient_bytes,
            optimizer_bytes=self._trainer.optimizer_bytes,
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
