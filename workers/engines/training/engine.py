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
from workers.engines.training_state import Resumable
from workers.messages import Built, EnginePlan, RankReport, TrainingWork
from workers.probes.collector import uncollected
from workers.records import STEPS
from workers.training_records import (
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
    from workers.engines.training.states import States
    from workers.engines.training.trainer import StepResult
    from workers.rank import RankContext

# Auto: an update of a parameter is one kernel on GPUs. On: also on CPUs, and layers are compiled.
# Off: neither.
FUSION = ("auto", "off", "on")
TIMED = 3  # steps of an observed run before those that are profiled
# Those before them, at most, of fp16, whose gradients overflow: from a scale of 2^16 to one of 1.
SETTLING = 17
READING_S = 300.0  # for what the profiler wrote
# In the first step a pipeline tells its shapes, and in the second one DDP makes its buckets anew.
BEFORE_COUNTING = 2


def switches_of(plan: EnginePlan) -> dict[str, tuple[str, ...]]:
    """What collectives go through, and on GPUs the kernel of attention that is tried first."""
    if plan.device == "cpu":
        return {"allreduce": ("gloo",)}
    return {"allreduce": ("nccl",), "attention": ("cudnn", "flash")}


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

    def save(self, folder: Path, like: str | None) -> None:
        """Write what was trained, with the config and the tokenizer of the folder `like`."""
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
        """What its collectives go through, its attention, and what is fused."""
        return {**switches_of(plan), "fusion": FUSION}

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
        """Train from the first weights, or from where the run was stopped; or write what is
        trained. Before the first run, a few steps are taken, and what the last one communicates is
        counted: counting would slow the timed ones."""
        from workers.engines.training.model import attending
        from workers.engines.training.watching import watched

        assert self._context is not None, "build first"
        assert self._plan is not None
        with watched(self._context), attending(self._plan.switches.attention):
            return self._run(work)

    def _run(self, work: TrainingWork) -> RankReport:
        from workers.engines.training.saving import check_folder
        from workers.engines.training.states import States

        assert self._trainer is not None
        assert self._context is not None
        assert self._plan is not None
        trainer, context = self._trainer, self._context
        if work.save is not None and work.write:
            trainer.save(Path(work.save), work.like)
            return self._report([], time.perf_counter(), states_s=0.0)
        if self._traffic is None:
            self._count_step(work)
        if work.observe:
            return self._observed(work)
        if work.save is not None:
            check_folder(Path(work.save))
        trainer.reset()
        states = States(trainer, context, self._plan, work)
        taken, rows = states.resume()
        context.barrier()
        reset_peak([context.device])
        with uncollected():
            began = self._take_steps(work, states, taken, rows)
        return self._report(rows, began, states.seconds, states.lacking)

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
        batches = self._batches(work, BEFORE_COUNTING + SETTLING + 1)
        for tokens in itertools.islice(batches, BEFORE_COUNTING):
            self._trainer.step(tokens)
        self._settle(batches)
        self._trainer.step(next(batches), counting)
        self._traffic, self._journal = counting.rows(self._context.rank), counting.journal
        if self._plan is not None and self._plan.ablation == "comm":
            self._traffic = []  # its calls move nothing

    def _observed(self, work: TrainingWork) -> RankReport:
        """Take a few steps apart, after others of the same that are not profiled."""
        from workers.engines.training.observed import overlaps_of, parts_of
        from workers.engines.training.observing import STARTING, Watch

        assert self._trainer is not None
        assert self._context is not None
        context, began = self._context, time.perf_counter()
        watch = Watch(context.placement, context.rank, context.device, self._journal)
        profiled = STARTING + watch.kept
        batches = self._batches(work, SETTLING + TIMED + profiled)
        context.progress.standing.steps(0)
        self._settle(batches)
        context.barrier()
        timed = [self._seconds(tokens) for tokens in itertools.islice(batches, TIMED)]
        context.barrier()
        with uncollected(), watch.watching():
            for number, tokens in enumerate(itertools.islice(batches, profiled)):
                with watch.step(number):
                    self._seconds(tokens)
        steps = watch.steps(time.monotonic() + READING_S)
        report = self._report([], began, states_s=0.0)
        assert report.training is not None
        rank, placement = context.rank, context.placement
        training = replace(
            report.training,
            parts=TRAINING_PARTS.make([parts_of(rank, placement, steps, timed)] if steps else []),
            overlaps=TRAINING_OVERLAPS.make(overlaps_of(rank, steps)),
        )
        return replace(report, training=training)

    def _settle(self, batches: Iterator[Tensor]) -> None:
        """Take steps, in fp16, until one updates the weights."""
        assert self._trainer is not None
        for _ in range(SETTLING):
            scale = self._trainer.loss_scale
            if scale is None or scale[1]:
                return
            self._seconds(next(batches))

    def _seconds(self, tokens: Tensor) -> float:
        """How long a step takes, of those that are none of a run."""
        assert self._trainer is not None
        assert self._context is not None
        standing, began = self._context.progress.standing, time.perf_counter()
        self._trainer.step(tokens)
        synchronize(self._context.device)
        seconds = time.perf_counter() - began
        standing.steps(standing.launched + 1)
        return seconds

    def _batches(self, work: TrainingWork, steps: int, first: int = 0) -> Iterator[Tensor]:
        """This replica's sequences of each step, from number `first` on."""
        from workers.engines.training.batches import batches

        assert self._trainer is not None
        assert self._plan is not None
        return batches(self._plan, work, self._trainer.replica, range(first, steps))

    def _report(
        self,
        rows: list[TrainingStepRow],
        began_s: float,
        states_s: float,
        states_reason: str | None = None,
    ) -> RankReport:
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
            states_reason=states_reason,
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
