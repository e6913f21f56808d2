"""What one rank spent in each phase of a timed run, and what the roofline says that takes at least.

A step is from the end of the step before it to its own end. The first steps of a phase, which are
not `settled` and so in no profile, also wait for other ranks: what they take beyond the pace of the
others is the ramp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from orchestrator.analysis.observed.steps import settled
from orchestrator.analysis.roofline import Closed, Rates, Stage, stages_of
from strategies.placement import Placement
from workers.intervals import union
from workers.messages import EnginePlan, RankReport
from workers.records import DECODE, PREFILL


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of one rank in one phase, in order: arrays [steps].

    windows: float64, seconds from the end of the step before. requests, tokens, micro_batch: int64,
    of each step. first: how many of the first ones are not `settled`.
    """

    windows: np.ndarray
    requests: np.ndarray
    tokens: np.ndarray
    micro_batch: np.ndarray
    first: int

    def ramp(self, work: np.ndarray) -> float:
        """Seconds that the first steps take beyond the pace of the others. work: [steps], how much
        each has to do."""
        settled_work = work[self.first :].sum()
        if not self.first or not settled_work:
            return 0.0
        pace = self.windows[self.first :].sum() / settled_work
        return max(0.0, float((self.windows - pace * work)[: self.first].sum()))


@dataclass(frozen=True, slots=True)
class RankSteps:
    """What one rank did. load: the requests of its replica. prompts: int64, their tokens, in the
    order in which they were let in."""

    stage: Stage
    load: Closed
    prompts: np.ndarray
    decode: Steps
    prefill: Steps


@dataclass(frozen=True, slots=True)
class Spent:
    """What one rank spent in a phase, in seconds: in its steps, and in the ramp of the first ones;
    and the roofline of it, None where unknown."""

    steps: float
    ramp: float
    weights: float | None = None
    kv: float | None = None
    arithmetic: float | None = None


def ranks_of(
    plan: EnginePlan, reports: Sequence[RankReport], requests: pa.Table
) -> list[RankSteps]:
    """In rank order."""
    placement = plan.placement
    stages = stages_of(placement, plan.model, plan.precision)
    replicas = np.asarray(requests.column("replica"))

    def of(report: RankReport) -> RankSteps:
        at = placement.coordinates(report.rank)
        mine = requests.filter(pa.array(replicas == at.get("dp", 0)))
        ends = _worked_until(np.asarray(report.steps.column("end_s")), mine)
        steps = partial(_steps, report.steps, np.diff(ends, prepend=0.0), placement)
        lengths = [mine.column(name).to_pylist() for name in ("input_len", "output_len")]
        load = Closed.of(zip(*lengths, strict=True), seats=1)
        prompts = np.array(lengths[0], dtype=np.int64)
        return RankSteps(stages[at.get("pp", 0)], load, prompts, steps(DECODE), steps(PREFILL))

    return [of(report) for report in sorted(reports, key=lambda one: one.rank)]


def _steps(table: pa.Table, windows: np.ndarray, placement: Placement, phase: str) -> Steps:
    """table: STEPS of one rank. windows: float64 [steps], seconds."""
    mine = np.asarray(table.column("phase")) == phase
    took = windows[mine]
    return Steps(
        windows=took,
        requests=np.asarray(table.column("num_requests"))[mine],
        tokens=np.asarray(table.column("num_tokens"))[mine],
        micro_batch=np.asarray(table.column("micro_batch"))[mine],
        first=len(took) - len(settled(phase, range(len(took)), placement)),
    )


def _worked_until(ends: np.ndarray, requests: pa.Table) -> np.ndarray:
    """Seconds until each of the moments `ends` without those in which an open loop had no request
    in flight: waiting for the next arrival is no part of the step that serves it.

    requests: those of the replica.
    """
    admitted = requests.column("admitted_s")
    if not len(admitted) or admitted.null_count:
        return ends
    lasts = [times[-1] for times in requests.column("token_times_s").to_pylist()]
    edges = np.array(union(zip(admitted.to_pylist(), lasts, strict=True))).ravel()
    lengths = np.diff(edges, prepend=edges[0])
    lengths[::2] = 0.0  # up to the beginning of each stretch
    worked: np.ndarray = np.interp(ends, edges, np.cumsum(lengths))
    return worked


# -- what a phase took of it


def decode_of(rank: RankSteps, rates: Rates | None) -> Spent:
    """A pass takes about as long whatever the number of its requests: the pace is of steps."""
    steps, made, context = rank.decode, rank.load.decoded, rank.stage.context(rank.load)
    read, operations = made * context, rank.stage.decode_flops(made, context)
    spent = _spent(steps, np.ones(len(steps.windows)))
    weights = len(steps.windows) * rank.stage.weight_bytes
    return _with_roofline(spent, rank.stage, weights, read, operations, rates)


def prefill_of(rank: RankSteps, rates: Rates | None) -> Spent:
    """The pace is of tokens."""
    steps, stage = rank.prefill, rank.stage
    operations = stage.prefill_flops(rank.load)
    read = _read_again(steps, rank.prompts, stage)
    spent = _spent(steps, steps.tokens)
    weights = len(steps.windows) * stage.streamed
    return _with_roofline(spent, stage, weights, read, operations, rates)


def _read_again(steps: Steps, prompts: np.ndarray, stage: Stage) -> float | None:
    """Tokens of earlier chunks of a prompt whose keys and values a later one reads, over all
    prompts, mean over the layers of `stage`; None where that is not known.

    A micro-batch takes its prompts in order, so the place in a prompt at which a step begins is
    known where there is one micro-batch, or where prompts are equally long. Prompts that are read
    whole read nothing again.
    """
    if steps.requests.sum() == len(prompts):
        return 0.0
    micro_batches = np.unique(steps.micro_batch)
    if len(micro_batches) > 1 and prompts.min() != prompts.max():
        return None
    begins = np.cumsum(prompts) - prompts
    starts = np.zeros_like(steps.tokens)
    for one in micro_batches:
        tokens = steps.tokens[steps.micro_batch == one]
        places = np.cumsum(tokens) - tokens
        within = np.searchsorted(begins, places, side="right") - 1
        starts[steps.micro_batch == one] = places - begins[within]

    def read(window: int | None) -> float:
        return float(np.minimum(starts, prompts.max() if window is None else window - 1).sum())

    return stage.over_layers(read)


def _spent(steps: Steps, work: np.ndarray) -> Spent:
    ramp = steps.ramp(work)
    return Spent(float(steps.windows.sum()) - ramp, ramp)


def _with_roofline(
    spent: Spent,
    stage: Stage,
    weight_bytes: int,
    read: float | None,
    operations: float,
    rates: Rates | None,
) -> Spent:
    """weight_bytes: in all passes. read: tokens whose keys and values are read."""
    if rates is None:
        return spent
    weights = weight_bytes / rates.memory
    if read is None:
        return replace(spent, weights=weights)
    kv = read * stage.kv_bytes / rates.memory
    arithmetic = max(0.0, operations / rates.flops - weights - kv)
    return replace(spent, weights=weights, kv=kv, arithmetic=arithmetic)
