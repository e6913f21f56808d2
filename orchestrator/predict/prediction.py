"""What one layout would reach under one load."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.plan.fitting import shortage
from orchestrator.predict.interval import (
    Estimate,
    estimate,
    has_other_kernels,
    if_known,
    outside,
    outside_few,
)
from orchestrator.predict.load import Asked
from orchestrator.predict.outcome import Outcome, outcome
from orchestrator.predict.parts import TINY, Parts
from orchestrator.predict.passes import Placed, Setting, UnknownLink
from orchestrator.predict.replica import TooManyPasses
from strategies import memory

MS = 1e3
# What is said of a prediction whose all-reduces go through memory of GPUs while the calibration has
# none of these.
NOT_MEASURED = (
    "all-reduce through memory of GPUs was not measured on such GPUs: times by latency and "
    "bandwidth, and the interval reaches to NCCL's; `orchestrator calibrate` measures them"
)
# Why a layout has no prediction.
IMPOSSIBLE, UNKNOWN = "impossible", "unknown"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes on the fullest GPU. kv: of the requests in flight. reserve: for the CUDA context, NCCL,
    graphs and fragments, as measured."""

    weights: int
    kv: int
    activations: int
    reserve: int
    available: int | None

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.activations + self.reserve


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one layout and load.

    in_flight: requests that are served at once: fewer than asked where KV has no room for them.
    parts: GPU-milliseconds for each output token; with outside_ms_per_token, in which a replica has
    nothing to do, they sum to device_ms_per_token. bound: tokens/s in the least time for the load
    (`analysis.least`) at the rates of `Hardware.ceilings`: measured ones, or a share of the data
    sheet's, which a faster unit can exceed. outside: what lies outside of where the factors were
    fitted; each widens the intervals. ttft_ms: None where that leaves nothing to be said. late: of
    an open loop, requests that wait for a seat when the last one arrives; closed_output_throughput:
    tokens/s that a closed loop of such requests and all seats makes, so that of more, ever more
    wait; None of a closed loop. axes: that have groups of several ranks; between_nodes: those of
    which one is on several nodes.
    """

    layout: str
    engine: str
    num_gpus: int
    max_concurrency: int
    in_flight: int
    output_throughput: Estimate
    ttft_ms: Estimate | None
    tpot_ms: Estimate
    decode_ms_per_step: float
    prefill_s: float
    duration_s: float
    parts: Parts
    outside_ms_per_token: float
    device_ms_per_token: float
    bound_output_throughput: float
    memory: MemoryUse
    joules_per_output_token: Estimate | None
    cost_per_million_tokens: Estimate | None
    outside: tuple[str, ...]
    late: int = 0
    closed_output_throughput: float | None = None
    axes: tuple[str, ...] = ()
    between_nodes: tuple[str, ...] = ()

    @property
    def per_gpu(self) -> float:
        """Tokens/s for each GPU."""
        return self.output_throughput.value / self.num_gpus


@dataclass(frozen=True, slots=True)
class NoPrediction:
    """A layout that cannot run, or of which nothing can be said. max_concurrency: None for every
    one of them."""

    layout: str
    kind: str
    reason: str
    max_concurrency: int | None = None


def predict(setting: Setting, name: str, asked: Asked) -> Prediction | NoPrediction:
    """Predict the layout of that name, or say why not."""
    if why := setting.not_run:
        return NoPrediction(name, IMPOSSIBLE, why)
    found = _predict(setting, name, asked)
    if isinstance(found, NoPrediction):
        return found
    by_line = with_sums(setting)
    if by_line is not setting:
        other = _predict(by_line, name, asked)
        assert isinstance(other, Prediction), "the same with other times of collectives"
        found = _reaching(other, found)
    if setting.factors.longest_start_s > setting.factors.start_s:
        later = _predict(with_sums(_later(setting)), name, asked)
        assert isinstance(later, Prediction), "the same with a longer start"
        found = _widened(found, later, both_ways=False)
    if not has_other_kernels(setting):
        return found
    slower = _predict(with_sums(_slower(setting)), name, asked)
    assert isinstance(slower, Prediction), "the same with longer layers"
    return _widened(found, slower, both_ways=True)


def _later(setting: Setting) -> Setting:
    """The same on the host that took longest from a request to its first pass."""
    factors = setting.factors
    return Setting(setting.placed, replace(factors, start_s=factors.longest_start_s))


def _slower(setting: Setting) -> Setting:
    """The same whose layers take longer by what kinds of kernels differ by."""
    factors, few = setting.factors, setting.factors.few
    longer = few and replace(few, layer_s=few.layer_s + factors.kinds_s)
    layer_s = factors.layer_s + factors.kinds_s
    return Setting(setting.placed, replace(factors, layer_s=layer_s, few=longer))


def _widened(one: Prediction, worse: Prediction, both_ways: bool) -> Prediction:
    """The same with intervals that reach as much farther as a worse case takes them; both_ways: to
    the better side too."""

    def wider(value: Estimate, ratio: float) -> Estimate:
        back = ratio if both_ways else 1.0
        return replace(value, low=value.low / back, high=value.high * ratio)

    speed, ttft, tpot = one.output_throughput, one.ttft_ms, one.tpot_ms
    pace = speed.value / worse.output_throughput.value
    energy, cost = one.joules_per_output_token, one.cost_per_million_tokens
    high = speed.high * pace if both_ways else speed.high
    return replace(
        one,
        output_throughput=replace(speed, low=speed.low / pace, high=high),
        ttft_ms=ttft and worse.ttft_ms and wider(ttft, worse.ttft_ms.value / ttft.value),
        tpot_ms=wider(tpot, worse.tpot_ms.value / tpot.value if tpot.value else 1.0),
        joules_per_output_token=energy and wider(energy, pace),
        cost_per_million_tokens=cost and wider(cost, pace),
    )


def with_sums(setting: Setting) -> Setting:
    """The same, with times by latency and bandwidth of what sums over tp where they were not
    measured."""
    placed = setting.placed
    fabric = placed.hardware.fabric
    if fabric.knows(placed.allreduce, placed.placement.degree("tp")):
        return setting
    hardware = replace(placed.hardware, fabric=fabric.with_peer_sums())
    return Setting(replace(placed, hardware=hardware), setting.factors)


def _reaching(one: Prediction, other: Prediction) -> Prediction:
    """The same with intervals that reach to those of another case."""
    return replace(
        one,
        output_throughput=_hull(one.output_throughput, other.output_throughput),
        ttft_ms=one.ttft_ms and _hull(one.ttft_ms, other.ttft_ms),
        tpot_ms=_hull(one.tpot_ms, other.tpot_ms),
        joules_per_output_token=one.joules_per_output_token
        and _hull(one.joules_per_output_token, other.joules_per_output_token),
        cost_per_million_tokens=one.cost_per_million_tokens
        and _hull(one.cost_per_million_tokens, other.cost_per_million_tokens),
        outside=(*one.outside, NOT_MEASURED),
    )


def _hull(one: Estimate, other: Estimate | None) -> Estimate:
    ends = (one, other or one)
    return replace(one, low=min(end.low for end in ends), high=max(end.high for end in ends))


def _predict(setting: Setting, name: str, asked: Asked) -> Prediction | NoPrediction:
    hardware = setting.placed.hardware
    if any(rates is None for rates in setting.placed.rates.values()):
        why = f"no rate of {hardware.name} is known in the dtype of its matrices"
        return NoPrediction(name, UNKNOWN, why)
    engine = setting.placed.placement.option("engine")
    if engine is not None and engine != setting.factors.engine:
        why = f"it needs the engine {engine}, for which no factors were fitted"
        return NoPrediction(name, UNKNOWN, why)
    budget = budget_of(setting.placed, asked)
    if not budget.holds(asked.max_len):
        return NoPrediction(name, IMPOSSIBLE, shortage(budget, asked.max_len))
    try:
        made = outcome(setting, asked, budget)
    except (UnknownLink, TooManyPasses) as why:
        return NoPrediction(name, UNKNOWN, str(why))
    return _prediction(setting, asked, budget, made, name)


def budget_of(placed: Placed, asked: Asked) -> memory.Budget:
    """Bytes on the fullest GPU, one rank of each stage looked at: the first of a group has the
    largest share."""
    tokens = asked.lengths.prefill_tokens
    if tokens not in placed.budgets:
        placement, room = placed.placement, placed.hardware.memory_bytes or 0
        firsts = [placement.rank_at({"pp": index}) for index in range(placement.degree("pp"))]
        placed.budgets[tokens] = memory.budget(
            placement, placed.model, placed.precision, room, tokens, firsts
        )
    return placed.budgets[tokens]


def _prediction(
    setting: Setting, asked: Asked, budget: memory.Budget, made: Outcome, name: str
) -> Prediction:
    """The figures of what a layout does."""
    ranks = setting.placed.placement.num_ranks
    beyond = outside(setting, asked.lengths, made.requests)
    if asked.arrivals:
        beyond = (*beyond, "requests that arrive by the clock, fitted on closed loops")
    decoding = (*beyond, *outside_few(setting, made.requests))
    speed = estimate(asked.tokens / made.seconds, "output_throughput", setting.factors, decoding)
    parts, total = (made.parts.times(MS / asked.tokens), made.seconds * ranks * MS / asked.tokens)
    rest = total - parts.seconds
    return Prediction(
        layout=name,
        engine=setting.factors.engine,
        num_gpus=ranks,
        max_concurrency=asked.max_concurrency,
        in_flight=made.in_flight,
        output_throughput=speed,
        ttft_ms=if_known(made.ttft_s * MS, "ttft_ms", setting.factors, beyond),
        tpot_ms=estimate(made.tpot_s * MS, "tpot_ms", setting.factors, decoding),
        decode_ms_per_step=made.round_s * MS,
        prefill_s=made.prefill_s,
        duration_s=made.seconds,
        parts=parts,
        outside_ms_per_token=rest if rest > TINY * total else 0.0,
        device_ms_per_token=total,
        bound_output_throughput=asked.tokens / made.least_s,
        memory=_memory(setting, budget, made.kept_tokens),
        joules_per_output_token=_joules(setting, parts, total, speed),
        cost_per_million_tokens=_cost(asked, ranks, speed),
        outside=decoding,
        axes=tuple(setting.placed.groups),
        between_nodes=tuple(axis for axis, at in setting.placed.groups.items() if at.nodes > 1),
        late=made.late,
        closed_output_throughput=_closed(setting, asked, budget),
    )


def _closed(setting: Setting, asked: Asked, budget: memory.Budget) -> float | None:
    """Tokens/s of the closed loop that is like an open one."""
    if not asked.arrivals:
        return None
    closed = asked.closed
    return closed.tokens / outcome(setting, closed, budget).seconds


def _memory(setting: Setting, budget: memory.Budget, tokens: int) -> MemoryUse:
    there, kept = setting.placed.hardware.memory_bytes, tokens * budget.kv_per_token
    return MemoryUse(budget.weights, kept, budget.workspace, memory.OVERHEAD_BYTES, there)


def _joules(setting: Setting, parts: Parts, gpu_ms: float, speed: Estimate) -> Estimate | None:
    """Energy of all GPUs for a token: a share of the power limit always, and one while a GPU
    computes."""
    limit, factors = setting.placed.hardware.power_w, setting.factors
    if limit is None or factors.idle_power is None or factors.busy_power is None:
        return None
    used = factors.idle_power * gpu_ms + factors.busy_power * parts.compute
    return _inverse(limit * used / MS, speed)


def _cost(asked: Asked, ranks: int, speed: Estimate) -> Estimate | None:
    if asked.gpu_hour_cost is None:
        return None
    return _inverse(asked.gpu_hour_cost * ranks / 3600 / speed.value * 1e6, speed)


def _inverse(value: float, speed: Estimate) -> Estimate:
    """What is as uncertain as `speed`, and falls where that rises."""
    return Estimate(value, value * speed.value / speed.high, value * speed.value / speed.low)
