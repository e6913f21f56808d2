"""The summary: one row a run, made of one group of columns for each subject.

A run's own row (`Measured`) is made once, by `measured` or `failed`, and kept. What was observed of
its cell is put beside it when the results are read: that makes it a `Summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from orchestrator.analysis.bounds import Bounds, bounds_of, loads_of
from orchestrator.analysis.building import Memory, Startup, memory_of, startup_of
from orchestrator.analysis.crosscheck import Crosscheck, crosscheck_of
from orchestrator.analysis.device_time import DeviceTime, device_time_of
from orchestrator.analysis.energy import Energy, energy_of
from orchestrator.analysis.goodput import Goodput, Slo, goodput_of, slo_of
from orchestrator.analysis.latency import Arrivals, Latency, TokenTimes, arrivals_of, latency_of
from orchestrator.analysis.observed.communication import SlowestRank, StepParts
from orchestrator.analysis.observed.operations import (
    Links,
    Operations,
    Traffic,
    links_of,
    traffic_of,
)
from orchestrator.analysis.outputs import output_digest
from orchestrator.analysis.predicted import Predicted, beside
from orchestrator.analysis.roofline import Ceilings
from orchestrator.analysis.samples import Clocks, clocks_of, sampled
from orchestrator.analysis.throughput import Steady, Throughput, steady_of, throughput_of
from orchestrator.analysis.token_cost import TokenCost
from orchestrator.store.schema import COMPLETED, FAILED, INVALID, Outcome, RunKey
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.rows import Table, column, group, nothing, row, widened
from workers.units import unnamed


@row
class Settings:
    """The switches of the engine as they were set; null where it has none of that name."""

    attention: str | None = column(
        "how attention is computed: eager, sdpa, triton, fa3, fa3-prefill or flashinfer",
        over_runs="first",
    )
    cuda_graphs: str | None = column(
        "whether steps are captured in graphs: on or off", over_runs="first"
    )
    fusion: str | None = column(
        "whether small operations share a kernel: on or off", over_runs="first"
    )
    batching: str | None = column(
        "continuous, or static: a batch begins when the one before has ended", over_runs="first"
    )
    chunked_prefill_size: str | None = column(
        "prompt tokens of a forward pass, to which prompts are cut; off: they go whole",
        over_runs="first",
    )
    allreduce: str | None = column("what sums over tp", over_runs="first")
    overlap: str | None = column(
        "whether half of a large pass computes while sums over tp of the other half go on: on or "
        "off",
        over_runs="first",
    )
    products: str | None = column(
        "what multiplies few rows by a matrix: triton or cublas", over_runs="first"
    )
    pdl: str | None = column(
        "whether a kernel is launched before the one before it has ended: on or off",
        over_runs="first",
    )


@row
class Conditions:
    """What was asked of a run, and where and when it ran."""

    input_len: int | None = column(
        "prompt tokens of a request; null where they differ", "tokens", over_runs="first"
    )
    output_len: int | None = column(
        "tokens asked for of a request; null where they differ", "tokens", over_runs="first"
    )
    mean_input_len: float | None = column(
        "mean prompt tokens of a request", "tokens", over_runs="first"
    )
    mean_output_len: float | None = column(
        "mean tokens asked for of a request", "tokens", over_runs="first"
    )
    num_prompts: int = column("requests asked for", "requests", over_runs="first")
    num_conversations: int | None = column(
        "conversations whose turns they are; null where no request waits for the reply to another",
        "1",
        over_runs="first",
    )
    seed: int | None = column(
        "of prompts, arrivals and sampling; null where an imported run does not say", "1"
    )
    num_gpus: int = column("devices of the layout", "1", over_runs="first")
    device_name: str | None = column("name of a device", over_runs="first")
    started_at: str = column("when the run began, UTC")
    block: int = column(
        "number of the command that made the run, from 0; starts of one block make pairs", "1"
    )
    node: int | None = column(
        "number of the node that made the run, from 0: other GPUs, or another CPU, are another one",
        "1",
    )
    metadata: str = column("what the user had kept beside it, JSON")
    settings: Settings = group()


@row
class Figures:
    """Everything that is measured in a run, a group for each subject."""

    conditions: Conditions = group()
    throughput: Throughput = group()
    steady: Steady = group()
    device_time: DeviceTime = group(better="lower")
    goodput: Goodput = group()
    slo: Slo = group()
    arrivals: Arrivals = group()
    latency: Latency = group()
    startup: Startup = group()
    memory: Memory = group()
    traffic: Traffic = group()
    links: Links = group()
    energy: Energy = group()
    clocks: Clocks = group()
    crosscheck: Crosscheck = group()
    bounds: Bounds = group(better="higher")
    predicted: Predicted = group("predicted_{}")


@row
class Observed:
    """What is observed of a cell in a start, for all runs of that start."""

    step: StepParts = group()
    slowest: SlowestRank = group()
    cost: TokenCost = group(better="lower")
    operations: Operations = group()


@row
class Measured(Figures, Outcome, RunKey):
    """One run, as it is kept."""

    output_digest: str | None = column(
        "16 hex digits of SHA-256 over the tokens of every request; null where they are unknown"
    )


@row
class Summary(Observed, Measured):
    """One run, with what was observed of its cell."""


WITHOUT_PREFIX_CACHE = frozenset({"torch"})  # engines that read every prompt from its beginning
MEASURED = Table("summary", Measured)
SUMMARY = Table("summary", Summary)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A run that is to be made: of what, and under which conditions.

    levels: service levels in ms. request_rate: of a trace, its mean; None in a closed loop.
    burstiness: None in a closed loop and of a trace. trace: what of it is served, and how fast;
    None where there is none. ceilings: what its devices can do as measured, or else as their maker
    says; sheet: as their maker says; None where that is unknown. predicted: what the cost model
    says of it.
    """

    key: RunKey
    plan: EnginePlan
    work: Work
    started_at: str
    block: int
    metadata: str
    levels: Mapping[str, float]
    node: int | None = None
    request_rate: float | None = None
    burstiness: float | None = None
    trace: str | None = None
    ceilings: Ceilings | None = None
    sheet: Ceilings | None = None
    predicted: Predicted | None = None


@dataclass(frozen=True, slots=True)
class Building:
    """A group of workers that was built. startup_s: None before its first token. nodes: rank -> the
    address of its node, empty where that is not known."""

    built: Sequence[Built]
    device_name: str
    build_s: float
    startup_s: float | None = None
    nodes: tuple[str, ...] = ()


def measured(
    attempt: Attempt, building: Building, reports: Sequence[RankReport], requests: pa.Table
) -> Measured:
    """The row of a run. requests: those of all ranks, by index (table REQUESTS)."""
    plan, work, num_gpus = attempt.plan, attempt.work, attempt.plan.placement.num_ranks
    num_prompts = len(work.requests)
    seats, awaited = work.max_concurrency, work.awaited()
    made = throughput_of(requests, seats, num_prompts, num_gpus, awaited)
    loads = loads_of(requests, plan.placement, seats, work.first_turns())
    engine, (ceilings, sheet) = attempt.key.cell.engine, _ceilings(attempt)
    bounds, reason = bounds_of(plan, engine, loads, made, ceilings, sheet)
    seen, latency = sampled(reports, made.duration, num_gpus), latency_of(TokenTimes.of(requests))
    return widened(
        Measured,
        attempt.key,
        status=INVALID if reason else COMPLETED,
        reason=reason,
        conditions=_conditions(attempt, building.device_name),
        throughput=made,
        steady=nothing(Steady) if work.is_open else steady_of(requests, awaited),
        device_time=device_time_of(plan, made, reports, requests, ceilings),
        goodput=goodput_of(requests, attempt.levels, num_prompts),
        slo=slo_of(requests, attempt.levels, num_prompts),
        arrivals=arrivals_of(requests, attempt.request_rate, attempt.burstiness, attempt.trace),
        latency=latency,
        startup=startup_of(building.built, building.build_s, building.startup_s),
        memory=memory_of(building.built, plan, reports),
        traffic=traffic_of(reports),
        links=links_of(reports, plan.placement, building.nodes),
        energy=energy_of(seen, made.total_output_tokens or 0),
        clocks=clocks_of(seen),
        crosscheck=crosscheck_of(seen, reports, plan),
        bounds=bounds,
        predicted=beside(attempt.predicted or nothing(Predicted), made, latency),
        output_digest=output_digest(requests),
    )


def _ceilings(attempt: Attempt) -> tuple[Ceilings | None, Ceilings | None]:
    """As measured and as the maker says. None where the lengths of prompts do not say what must be
    computed of them, as some may have been found in a prefix cache."""
    if attempt.work.reuse and attempt.key.cell.engine not in WITHOUT_PREFIX_CACHE:
        return None, None
    return attempt.ceilings, attempt.sheet


def failed(attempt: Attempt, reason: str) -> Measured:
    """The row of a run that gave no result."""
    asked = len(attempt.work.requests)
    figures = replace(
        nothing(Figures),
        conditions=_conditions(attempt, unnamed(attempt.plan.device)),
        throughput=replace(nothing(Throughput), completed=0, failed=asked),
        arrivals=replace(
            nothing(Arrivals),
            request_rate=attempt.request_rate,
            burstiness=attempt.burstiness,
            trace=attempt.trace,
        ),
    )
    outcome = {"status": FAILED, "reason": reason, "output_digest": None}
    return widened(Measured, attempt.key, **vars(figures), **outcome)


def _conditions(attempt: Attempt, device_name: str | None) -> Conditions:
    work = attempt.work
    prompts = [len(request.prompt) for request in work.requests]
    outputs = [request.output_len for request in work.requests]
    return Conditions(
        input_len=_common(prompts),
        output_len=_common(outputs),
        mean_input_len=sum(prompts) / len(prompts),
        mean_output_len=sum(outputs) / len(outputs),
        num_prompts=len(work.requests),
        num_conversations=work.num_conversations if work.awaited() else None,
        seed=attempt.plan.seed,
        num_gpus=attempt.plan.placement.num_ranks,
        device_name=device_name,
        started_at=attempt.started_at,
        block=attempt.block,
        node=attempt.node,
        metadata=attempt.metadata,
        settings=Settings(**asdict(attempt.plan.switches)),
    )


def _common(lengths: Sequence[int]) -> int | None:
    """The length that all have."""
    return lengths[0] if len(set(lengths)) == 1 else None
