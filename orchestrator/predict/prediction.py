"""What one layout would reach under one load."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.fitting import shortage
from orchestrator.predict.interval import Estimate, estimate, if_known, outside
from orchestrator.predict.load import Asked, Share, median
from orchestrator.predict.parts import TINY, Parts
from orchestrator.predict.passes import Placed, Setting, UnknownLink
from orchestrator.predict.replica import TooManyPasses
from strategies import memory

MS = 1e3
# Why a layout has no prediction.
IMPOSSIBLE, UNKNOWN = "impossible", "unknown"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes on the fullest GPU. kv: of the requests in flight. reserve: kept free for the CUDA
    context, NCCL and graphs."""

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
    fitted; each widens the intervals. ttft_ms: None where that leaves nothing to be said.
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
        return _Served.of(setting, asked, budget).prediction(name)
    except (UnknownLink, TooManyPasses) as why:
        return NoPrediction(name, UNKNOWN, str(why))


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


@dataclass(frozen=True, slots=True)
class _Served:
    """How a layout serves a load: the fullest replicas first."""

    setting: Setting
    asked: Asked
    budget: memory.Budget
    shares: tuple[Share, ...]

    @classmethod
    def of(cls, setting: Setting, asked: Asked, budget: memory.Budget) -> _Served:
        """Seats are dealt out one by one, so replicas are of two kinds at most, and of those
        without a request."""
        replicas = setting.placed.placement.degree("dp")
        room = budget.kv_tokens // asked.max_len if budget.kv_tokens >= 0 else asked.seats
        fuller = asked.seats % replicas
        kinds = [(0, fuller), (fuller, replicas - fuller)] if fuller else [(0, replicas)]
        shares = tuple(
            Share.of(setting, asked, room, count, first)
            for first, count in kinds
            if first < asked.seats
        )
        return cls(setting, asked, budget, shares)

    @property
    def tokens(self) -> int:
        """That are made."""
        return self.asked.requests * self.asked.lengths.output_len

    @property
    def seconds(self) -> float:
        """Until the last token."""
        return max(share.seconds for share in self.shares)

    def prediction(self, name: str) -> Prediction:
        """The figures of it."""
        asked, setting, fullest = self.asked, self.setting, self.shares[0]
        ranks = setting.placed.placement.num_ranks
        beyond = outside(setting, asked.lengths, fullest.seats)
        speed = estimate(self.tokens / self.seconds, "output_throughput", setting.factors, beyond)
        parts = Parts()
        for share in self.shares:
            parts += share.parts.times(MS / self.tokens)
        total = self.seconds * ranks * MS / self.tokens
        rest = total - parts.seconds
        return Prediction(
            layout=name,
            engine=setting.factors.engine,
            num_gpus=ranks,
            max_concurrency=asked.max_concurrency,
            in_flight=sum(share.seats * share.replicas for share in self.shares),
            output_throughput=speed,
            ttft_ms=if_known(self.ttft_s * MS, "ttft_ms", setting.factors, beyond),
            tpot_ms=estimate(self.tpot_s * MS, "tpot_ms", setting.factors, beyond),
            decode_ms_per_step=fullest.batch.round_s * MS,
            prefill_s=fullest.batch.prefill.seconds,
            duration_s=self.seconds,
            parts=parts,
            outside_ms_per_token=rest if rest > TINY * total else 0.0,
            device_ms_per_token=total,
            bound_output_throughput=self.tokens / self.shares[0].least_s,
            memory=self._memory(),
            joules_per_output_token=self._joules(parts, total, speed),
            cost_per_million_tokens=_cost(asked, ranks, speed),
            outside=beyond,
        )

    @property
    def ttft_s(self) -> float:
        """The median time to a first token."""
        return median(
            (at, count * share.replicas)
            for share in self.shares
            for at, count in share.first_tokens
        )

    @property
    def tpot_s(self) -> float:
        """The median time for each further token: a request whose prompt was read early waits for
        the other prompts."""
        batch = self.shares[0].batch
        blocked = batch.prefill.seconds - median(batch.first_tokens)
        return batch.round_s + blocked / max(self.asked.lengths.passes, 1)

    def _memory(self) -> MemoryUse:
        kept = self.shares[0].seats * self.asked.max_len * self.budget.kv_per_token
        budget, there = self.budget, self.setting.placed.hardware.memory_bytes
        return MemoryUse(budget.weights, kept, budget.workspace, memory.RESERVE_BYTES, there)

    def _joules(self, parts: Parts, gpu_ms: float, speed: Estimate) -> Estimate | None:
        """Energy of all GPUs for a token: a share of the power limit always, and one while a GPU
        computes."""
        limit, factors = self.setting.placed.hardware.power_w, self.setting.factors
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
