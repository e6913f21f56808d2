"""The least time that a placement needs for a load, whatever the engine: pure arithmetic.

A bound must be a bound. A pass over a stage streams its weights once and each request's keys and
values once, so it takes at least max(bytes / memory bandwidth, operations / arithmetic rate): the
roofline (Williams, Waterman, Patterson, 2009). What can stay in a cache from one pass to the next
is not counted, and communication takes no time at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.throughput import Throughput
from strategies.memory import kv_bytes_per_token
from strategies.placement import Placement
from strategies.shapes import DTYPE_BYTES, ModelShape
from workers.messages import EnginePlan, dealt
from workers.rows import column, nothing, row

CALIBRATED, DATASHEET = "calibrated", "datasheet"
# Engines whose passes hold prompts or one token a request, never both: prefill and decode cannot
# hide each other.
SEPARATE = frozenset({"torch", "transformers", "deepspeed"})
ROOFLINE = "roofline, Williams et al. 2009"


@row
class Bounds:
    """What the hardware could do. Null where lengths differ, tokens were left out (EOS), or nothing
    is known of the device in the run's dtype."""

    bound_output_throughput: float | None = column(
        "generated tokens per second that memory bandwidth and arithmetic allow this placement if "
        "communication takes no time",
        "tokens/s",
        source=ROOFLINE,
        over_runs="mean",
    )
    bound_pct: float | None = column(
        "output_throughput in percent of the bound",
        "%",
        formula="100 x output_throughput / bound_output_throughput",
        over_runs="mean",
    )
    model_flops_utilization: float | None = column(
        "the model's own operations, in percent of the arithmetic rate of all GPUs",
        "%",
        source="PaLM, Chowdhery et al. 2022, appendix B",
        over_runs="mean",
    )
    memory_bandwidth_utilization: float | None = column(
        "reading weights and KV in steady decode, in percent of the memory's rate, mean over "
        "stages",
        "%",
        over_runs="mean",
    )
    bound_source: str | None = column(
        "where the rates come from: calibrated or datasheet", over_runs="first"
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """What one device can do at most in one dtype.

    memory: bytes/s. flops: operations/s, dense. cache_bytes: what may stay in its caches.
    """

    memory: float
    flops: float
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What one device can do at most.

    hbm: bytes/s of its memory. flops: dtype -> operations/s, dense. cache_bytes: what may stay in
    its caches. source: calibrated or datasheet.
    """

    hbm: float
    flops: Mapping[str, float]
    cache_bytes: int
    source: str

    def rates(self, dtype: str) -> Rates | None:
        """The rates in `dtype` (float16 runs as bfloat16 does), None where they are unknown."""
        alias = {"float16": "bfloat16"}.get(dtype, dtype)
        flops = self.flops.get(dtype) or self.flops.get(alias)
        return Rates(self.hbm, flops, self.cache_bytes) if flops else None


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed batch: `requests` of `input_len` tokens in, `output_len` out, `seats` at a time."""

    input_len: int
    output_len: int
    requests: int
    seats: int

    @property
    def in_flight(self) -> int:
        """Most requests at a time."""
        return min(self.seats, self.requests)

    @property
    def rounds(self) -> float:
        """Decode passes of the fullest seat; a request's first token comes from its prefill."""
        return (self.output_len - 1) * max(1.0, self.requests / self.in_flight)

    @property
    def context(self) -> float:
        """Mean tokens of KV that a decode pass reads for a request: input_len for the second token,
        one more for each next."""
        return self.input_len + max(self.output_len - 2, 0) / 2


@dataclass(frozen=True, slots=True)
class Stage:
    """What one rank of a pipeline stage reads and computes at least.

    weight_bytes: in every pass. kv_bytes: of one token. token_flops, head_flops: of a token, of a
    sampled one (2 a parameter of a matrix). attention_flops: of a token and a token of its context.
    """

    weight_bytes: int
    kv_bytes: int
    token_flops: int
    head_flops: int
    attention_flops: int

    def prefill_flops(self, load: Closed) -> float:
        """Operations of all prompts, with causal attention; one token of each is sampled."""
        n = load.input_len
        attention = self.attention_flops * n * (n + 1) / 2
        return load.requests * (n * self.token_flops + self.head_flops + attention)

    def decode_flops(self, tokens: float, context: float) -> float:
        """Operations of `tokens` decoded tokens that attend to `context` tokens each."""
        return tokens * (self.token_flops + self.head_flops + context * self.attention_flops)

    def decode_bytes(self, requests: float, context: float) -> float:
        """Weights and KV that a decode pass of `requests` reads."""
        return self.weight_bytes + requests * context * self.kv_bytes

    def pass_s(self, requests: float, context: float, rates: Rates) -> float:
        """Seconds that a decode pass takes at least."""
        read = max(self.decode_bytes(requests, context) - rates.cache_bytes, 0.0)
        return max(read / rates.memory, self.decode_flops(requests, context) / rates.flops)


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds for a load, and how they come about with the best `micro_batches`."""

    seconds: float
    prefill_s: float
    decode_s: float
    micro_batches: int


def stages_of(placement: Placement, model: ModelShape, dtype: str) -> tuple[Stage, ...]:
    """The pipeline stages of one replica, each as its first rank sees it."""
    ranks = [placement.rank_at({"pp": index}) for index in range(placement.degree("pp"))]
    return tuple(_stage(placement, model, rank, DTYPE_BYTES[dtype]) for rank in ranks)


def _stage(placement: Placement, model: ModelShape, rank: int, dtype_bytes: int) -> Stage:
    read = dict(_parameters_read(placement, model, rank))
    shapes = dict(model.parameters())
    head = read.get(model.head_name, 0)
    matrices = sum(n for name, n in read.items() if len(shapes[name]) == 2) - head
    layers = sum(len(stage.layers) for stage in placement.stages_of(rank))
    q_shape = (model.num_heads * model.head_dim, model.hidden_size)
    q = placement.shard("model.layers.0.self_attn.q_proj.weight", q_shape, rank, stored=False)[0]
    return Stage(
        weight_bytes=sum(read.values()) * dtype_bytes,
        kv_bytes=kv_bytes_per_token(placement, model, rank, dtype_bytes),
        token_flops=2 * matrices,
        head_flops=2 * head,
        # queries times keys, and weights times values: 2 operations an element each
        attention_flops=4 * layers * (q.stop - q.start),
    )


def _parameters_read(
    placement: Placement, model: ModelShape, rank: int
) -> Iterator[tuple[str, int]]:
    """(name, elements) of the parameters that a pass reads whole.

    The embedding counts where it is the head too: looking a token up reads a row of it alone.
    """
    is_last = any(stage.head for stage in placement.stages_of(rank))
    for name, shape in model.parameters():
        is_head = is_last and name == model.head_name
        if placement.holds(name, rank, model) and (name != "model.embed_tokens.weight" or is_head):
            box = placement.shard(name, shape, rank, stored=False)
            yield name, math.prod(side.stop - side.start for side in box)


def least(stages: Sequence[Stage], load: Closed, rates: Rates, separate: bool = True) -> Bound:
    """The least seconds in which one replica can serve `load`, over every number of micro-batches.

    With n micro-batches a stage streams its weights n times a round, and a micro-batch passes the
    stages one after another, so a round takes max(n x slowest stage, sum of stages) of a pass with
    1/n of the requests. All prompts go through the slowest stage; a micro-batch waits for its own.
    separate: no pass holds both prompts and decoded tokens, so the two add up; else the longer one
    counts.
    """
    prompts = [stage.prefill_flops(load) / rates.flops for stage in stages]

    def bound(micro_batches: int) -> Bound:
        requests = load.in_flight / micro_batches
        passes = [stage.pass_s(requests, load.context, rates) for stage in stages]
        decodes = [load.rounds * micro_batches * one for one in passes]
        ways = list(zip(prompts, decodes, strict=True))
        ways.append((max(prompts) / micro_batches, load.rounds * sum(passes)))
        whole = sum if separate else max
        bounds = (Bound(whole(way), *way, micro_batches) for way in ways)
        return max(bounds, key=lambda one: one.seconds)

    return min(map(bound, range(1, load.in_flight + 1)), key=lambda one: one.seconds)


# -- the columns of a run


@dataclass(frozen=True, slots=True)
class Roof:
    """The bound of one replica's load, and what it was worked out of."""

    stages: tuple[Stage, ...]
    load: Closed
    rates: Rates
    bound: Bound

    @classmethod
    def of(cls, plan: EnginePlan, engine: str, whole: Closed, rates: Rates) -> Roof:
        """The bound of the fullest replica of a plan that serves the load `whole`."""
        stages = stages_of(plan.placement, plan.model, plan.dtype)
        load = fullest_replica(plan.placement, whole)
        return cls(stages, load, rates, least(stages, load, rates, engine in SEPARATE))


def bounds_of(
    plan: EnginePlan, engine: str, whole: Closed, made: Throughput, ceilings: Ceilings | None
) -> tuple[Bounds, str | None]:
    """The bounds of a run, and the arithmetic where it claims more than its bound.

    whole: the load of all replicas, lengths 0 where they differ. made: what the run made of it.
    """
    rates = ceilings.rates(plan.dtype) if ceilings else None
    served = whole.input_len and made.total_output_tokens == whole.requests * whole.output_len
    if not (ceilings and rates and served and made.output_throughput and made.duration):
        return nothing(Bounds), None
    roof = Roof.of(plan, engine, whole, rates)
    tokens, reached = whole.requests * whole.output_len, made.output_throughput
    highest = tokens / roof.bound.seconds
    device_s = made.duration * plan.placement.num_ranks
    bounds = Bounds(
        bound_output_throughput=highest,
        bound_pct=100 * reached / highest,
        bound_source=ceilings.source,
        model_flops_utilization=100 * model_flops(plan, whole) / (device_s * rates.flops),
        memory_bandwidth_utilization=memory_bandwidth_utilization(roof, made.decode_ms_per_step),
    )
    return bounds, _arithmetic(roof, tokens, reached, bounds) if reached > highest else None


def fullest_replica(placement: Placement, whole: Closed) -> Closed:
    """The share of the first data-parallel replica, which is never smaller than another's."""
    mine = dealt(whole.requests, whole.seats, 0, placement.degree("dp"))
    return Closed(whole.input_len, whole.output_len, len(mine.requests), mine.seats)


def model_flops(plan: EnginePlan, load: Closed) -> float:
    """The operations of the model itself for `load`, whatever is done twice."""
    whole = stages_of(Placement.single(plan.model), plan.model, plan.dtype)[0]
    decoded = load.requests * (load.output_len - 1)
    return whole.prefill_flops(load) + whole.decode_flops(decoded, load.context)


def memory_bandwidth_utilization(roof: Roof, step_ms: float | None) -> float | None:
    """Percent of the memory's rate that reading weights and KV took in steady decode, mean over
    stages.

    step_ms: from one token of a request to its next; in it a stage serves as many micro-batches as
    there are stages.
    """
    if not step_ms:
        return None
    stages, load = roof.stages, roof.load
    micro_batches = min(len(stages), load.in_flight)
    requests = load.in_flight / micro_batches
    read = [micro_batches * stage.decode_bytes(requests, load.context) for stage in stages]
    return 100 * sum(read) / len(read) / (step_ms / 1e3) / roof.rates.memory


def _arithmetic(roof: Roof, tokens: int, reached: float, bounds: Bounds) -> str:
    load, rates, bound = roof.load, roof.rates, roof.bound
    requests = load.in_flight / bound.micro_batches
    slowest = max(roof.stages, key=lambda stage: stage.pass_s(requests, load.context, rates))
    read = slowest.decode_bytes(requests, load.context)
    operations = slowest.decode_flops(requests, load.context)
    round_s = bound.decode_s / max(load.rounds, 1)
    return (
        f"{reached:.1f} tok/s is above the bound of {bounds.bound_output_throughput:.1f}: "
        f"{tokens} tokens in at least {bound.seconds:.4g} s, "
        f"of which prefill {bound.prefill_s:.4g} s ({bound.prefill_s * rates.flops:.4g} operations "
        f"of a GPU at {rates.flops / 1e12:.4g} TFLOP/s) and decode {bound.decode_s:.4g} s "
        f"({load.rounds:.4g} rounds of {round_s:.4g} s; a pass of the slowest stage takes the "
        f"longer of {read / 1e9:.4g} GB, less {rates.cache_bytes / 1e9:.4g} GB that may stay in a "
        f"cache, at {rates.memory / 1e9:.4g} GB/s and {operations:.4g} operations); "
        f"micro-batches: {bound.micro_batches}, stages: {len(roof.stages)}; "
        f"ceilings: {bounds.bound_source}"
    )
