"""The table `training`: one row for each run that trains, which has other columns than one that
serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from orchestrator.analysis.training.rate import TrainingRate, rate_of
from orchestrator.store.arrow_files import concat
from orchestrator.store.schema import COMPLETED, FAILED, Outcome, RunKey
from strategies.training import micro_batches
from workers.messages import Built, EnginePlan, RankReport
from workers.rows import Table, column, group, nothing, row, widened
from workers.training_records import (
    TRAINING_COLLECTIVES,
    TRAINING_STEPS,
    TrainingCollectiveRow,
    TrainingStepRow,
)
from workers.units import unnamed


@row
class TrainingConditions:
    """What was asked of a run, and where and when it ran."""

    seq_len: int = column("tokens of a sequence", "tokens", over_runs="first")
    global_batch_size: int = column(
        "sequences of an optimizer step, over all replicas", "1", over_runs="first"
    )
    micro_batch_size: int = column("sequences that a rank computes at once", "1", over_runs="first")
    micro_batches: int = column("micro-batches of a replica in a step", "1", over_runs="first")
    steps: int = column("optimizer steps of a run", "1", over_runs="first")
    precision: str = column("of weights, gradients and products", over_runs="first")
    schedule: str | None = column("of a pipeline; null without one", over_runs="first")
    activation_checkpointing: str = column(
        "which activations are not kept: off, full, selective or cpu-offload", over_runs="first"
    )
    offload: str | None = column(
        "what is kept in main memory: none, optimizer or optimizer+params", over_runs="first"
    )
    seed: int = column("of the tokens", "1", over_runs="first")
    num_gpus: int = column("devices of the layout", "1", over_runs="first")
    device_name: str | None = column("name of a device", over_runs="first")
    started_at: str = column("when the run began, UTC")
    block: int = column(
        "number of the command that made the run, from 0; starts of one block make pairs", "1"
    )
    node: int | None = column("number of the node that made the run, from 0", "1")
    metadata: str = column("what the user had kept beside it, JSON")


@row
class TrainingOutcome:
    """What was learned: of the weights before the last step."""

    first_loss: float | None = column(
        "mean loss of a token in the first step", "nat", over_runs="first"
    )
    loss: float | None = column("the same in the last step", "nat", over_runs="first")
    grad_norm: float | None = column(
        "2-norm of the whole model's gradient in the last step", "1", over_runs="first"
    )


@row
class TrainingMemory:
    """Bytes on the fullest rank."""

    weight_bytes: int | None = column("parameters", "B", over_runs="max", better="lower")
    gradient_bytes: int | None = column(
        "gradients at the end of a backward pass", "B", over_runs="max", better="lower"
    )
    optimizer_bytes: int | None = column(
        "moments, and the float32 copy of weights that are not float32",
        "B",
        over_runs="max",
        better="lower",
    )
    peak_memory_bytes: int | None = column(
        "most that was allocated during the run; on a CPU, resident in its process",
        "B",
        over_runs="max",
        better="lower",
    )
    activation_bytes: int | None = column(
        "the rest of the peak: activations, and what kernels and collectives take for a while; "
        "null on a CPU",
        "B",
        over_runs="max",
        better="lower",
    )


@row
class TrainingTraffic:
    """What one optimizer step communicates."""

    communication_calls: int | None = column(
        "calls of a step, of the rank with most", "1", over_runs="max"
    )
    communication_bytes: int | None = column(
        "message sizes of a step, of the rank with most", "B", over_runs="max"
    )


@row
class TrainingStartup:
    """What starting took, and keeping what is needed to go on."""

    build_s: float | None = column("from the first actor to built workers", "s", over_runs="mean")
    load_s: float | None = column("until the weights were loaded", "s", over_runs="mean")
    states_s: float | None = column(
        "writing states to go on from, the slowest rank; no time of a step", "s", over_runs="mean"
    )
    states_reason: str | None = column(
        "how many of these states could not be written, and why; null: none"
    )


@row
class TrainingFigures:
    """Everything that is known of a run, a group for each subject."""

    conditions: TrainingConditions = group()
    rate: TrainingRate = group()
    result: TrainingOutcome = group()
    memory: TrainingMemory = group()
    traffic: TrainingTraffic = group()
    startup: TrainingStartup = group()


@row
class Trained(TrainingFigures, Outcome, RunKey):
    """One run that trained, as it is kept."""


@row
class TrainedCollective(TrainingCollectiveRow, RunKey):
    """What a run communicates in a step, as it is kept."""


@row
class TrainedStep(TrainingStepRow, RunKey):
    """One optimizer step of a run, as it is kept."""


TRAINED = Table("training", Trained)
TRAINED_STEPS = Table("training_steps", TrainedStep)
TRAFFIC = Table("training_collectives", TrainedCollective)


@dataclass(frozen=True, slots=True)
class TrainingAttempt:
    """A run that is to be made: of what, and under which conditions. peak: operations/s of one
    device by its data sheet; None where that is unknown."""

    key: RunKey
    plan: EnginePlan
    steps: int
    started_at: str
    block: int
    metadata: str
    node: int | None = None
    peak: float | None = None


def states_reason(reports: Sequence[RankReport]) -> str | None:
    """See `TrainingStartup`; as the first rank knows it."""
    return next(one.training.states_reason for one in reports if one.training)


def trained(
    attempt: TrainingAttempt,
    built: Sequence[Built],
    build_s: float,
    device_name: str,
    reports: Sequence[RankReport],
) -> Trained:
    """The row of a run."""
    found = concat(one.training.steps for one in reports if one.training)
    steps = [] if found is None else TRAINING_STEPS.rows(found)
    return widened(
        Trained,
        attempt.key,
        status=COMPLETED,
        reason=None,
        conditions=_conditions(attempt, device_name),
        rate=rate_of(attempt.plan, steps, attempt.peak),
        result=TrainingOutcome(
            first_loss=steps[0].loss, loss=steps[-1].loss, grad_norm=steps[-1].grad_norm
        ),
        memory=_memory(reports, is_split=_is_split(attempt.plan)),
        traffic=_traffic(reports),
        startup=TrainingStartup(
            build_s=build_s,
            load_s=max(one.load_s for one in built),
            states_s=max(one.training.states_s for one in reports if one.training),
            states_reason=states_reason(reports),
        ),
    )


def failed(attempt: TrainingAttempt, reason: str) -> Trained:
    """The row of a run that gave no result."""
    return widened(
        Trained,
        attempt.key,
        status=FAILED,
        reason=reason,
        conditions=_conditions(attempt, unnamed(attempt.plan.device)),
        rate=nothing(TrainingRate),
        result=nothing(TrainingOutcome),
        memory=nothing(TrainingMemory),
        traffic=nothing(TrainingTraffic),
        startup=nothing(TrainingStartup),
    )


def training_tables(reports: Sequence[RankReport]) -> dict[str, pa.Table]:
    """What is kept of a run beside its row, by table."""
    found = {
        "training_steps": concat(one.training.steps for one in reports if one.training),
        "training_collectives": concat(one.training.traffic for one in reports if one.training),
        "telemetry": concat(one.telemetry for one in reports),
    }
    return {name: table for name, table in found.items() if table is not None}


def _conditions(attempt: TrainingAttempt, device_name: str | None) -> TrainingConditions:
    plan, asked = attempt.plan, attempt.plan.training
    assert asked is not None, "the plan trains"
    return TrainingConditions(
        seq_len=asked.seq_len,
        global_batch_size=asked.global_batch_size,
        micro_batch_size=asked.micro_batch_size,
        micro_batches=micro_batches(plan.placement, asked),
        steps=attempt.steps,
        precision=asked.precision,
        schedule=asked.schedule if plan.placement.degree("pp") > 1 else None,
        activation_checkpointing=asked.activation_checkpointing,
        offload=asked.offload,
        seed=plan.seed,
        num_gpus=plan.placement.num_ranks,
        device_name=device_name,
        started_at=attempt.started_at,
        block=attempt.block,
        node=attempt.node,
        metadata=attempt.metadata,
    )


def _is_split(plan: EnginePlan) -> bool:
    """Whether the peak is that of a device which holds weights, gradients and states."""
    assert plan.training is not None, "the plan trains"
    return plan.device == "cuda" and plan.training.offload == "none"


def _memory(reports: Sequence[RankReport], is_split: bool) -> TrainingMemory:
    kept = [one.training for one in reports if one.training]
    gradients = [one.gradient_bytes for one in kept if one.gradient_bytes is not None]
    rests = [
        one.peak_memory_bytes - mine.weight_bytes - mine.gradient_bytes - mine.optimizer_bytes
        for one in reports
        if (mine := one.training) and mine.gradient_bytes is not None
    ]
    return TrainingMemory(
        weight_bytes=max(one.weight_bytes for one in kept),
        gradient_bytes=max(gradients, default=None),
        optimizer_bytes=max(one.optimizer_bytes for one in kept),
        peak_memory_bytes=max(one.peak_memory_bytes for one in reports),
        activation_bytes=max(rests, default=None) if is_split else None,
    )


def _traffic(reports: Sequence[RankReport]) -> TrainingTraffic:
    rows: list[list[TrainingCollectiveRow]] = [
        TRAINING_COLLECTIVES.rows(one.training.traffic) for one in reports if one.training
    ]
    return TrainingTraffic(
        communication_calls=max(sum(one.calls for one in mine) for mine in rows),
        communication_bytes=max(sum(one.bytes for one in mine) for mine in rows),
    )
