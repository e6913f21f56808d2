"""The least time that a placement needs for a load, whatever the engine: pure arithmetic. A bound
must be a bound.

A pass over a stage streams its weights once and each request's keys and values once, so it takes at
least max(bytes / memory bandwidth, operations / arithmetic rate): the roofline (Williams, Waterman,
Patterson, 2009). What can stay in a cache from one pass to the next is not counted, and
communication takes no time at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from strategies.memory import kv_bytes_per_token
from strategies.placement import Placement
from strategies.shapes import DTYPE_BYTES, ModelShape
from workers.messages import EnginePlan
from workers.records import column

CALIBRATED, DATASHEET = "calibrated", "datasheet"
# Engines whose passes hold prompts or one token a request, never both: prefill and decode cannot
# hide each other.
SEPARATE = frozenset({"torch", "transformers", "deepspeed"})
# Columns of the summary. bound_pct is what was measured of the bound; the last two are of the
# ceilings' rates.
FIELDS = (
    column("bound_output_throughput", pa.float64(), "tokens/s"),
    column("bound_pct", pa.float64(), "%"),
    column("model_flops_utilization", pa.float64(), "%"),
    column("memory_bandwidth_utilization", pa.float64(), "%"),
    column("bound_source", pa.string()),
)
FIGURES = tuple(field.name for field in FIELDS if field.type != pa.string())


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

    def rate(self, dtype: str) -> float | None:
        """Operations per second in `dtype` (float16 runs as bfloat16 does), None where it is
        unknown."""
        return self.flops.get(dtype) or self.flops.get({"float16": "bfloat16"}.get(dtype, dtype))


@dataclass(frozen=True, slots=True)
class Closed:
    """The closed batch of one replica: `requests` of `input_len` tokens in and `output_len` out, at
    most `slots` at a time."""

    input_len: int
    output_len: int
    requests: int
    slots: int

    @property
    def together(self) -> int:
        return min(self.slots, self.requests)

    @property
    def rounds(self) -> float:
        """Decode passes that the fullest slot needs at least; the first token of a request comes
        from its prefill."""
        return (self.output_len - 1) * max(1.0, self.requests / self.together)

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
        """All prompts, with causal attention; one token of each is sampled."""
        n = load.input_len
        return load.requests * (
            n * self.token_flops + self.head_flops + self.attention_flops * n * (n + 1) / 2
        )

    def decode_flops(self, tokens: float, context: float) -> float:
        return tokens * (self.token_flops + self.head_flops + context * self.attention_flops)

    def decode_bytes(self, requests: float, context: float) -> float:
        """Weights and KV that a decode pass of `requests` reads."""
        return self.weight_bytes + requests * context * self.kv_bytes

    def pass_s(self, requests: float, context: float, ceilings: Ceilings, rate: float) -> float:
        """Seconds that a decode pass takes at least."""
        read = max(self.decode_bytes(requests, context) - ceilings.cache_bytes, 0.0)
        return max(read / ceilings.hbm, self.decode_flops(requests, context) / rate)


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds for a load, and how they come about; `micro_batches` micro-batches are in
    flight in the best case."""

    seconds: float
    prefill_s: float
    decode_s: float
    micro_batches: int


def stages_of(placement: Placement, model: ModelShape, dtype: str) -> tuple[Stage, ...]:
    """The pipeline stages of one replica, each as its first rank sees it."""
    ranks = [placement.rank_at({"pp": index}) for index in range(placement.degree("pp"))]
    return tuple(_stage(placement, model, rank, DTYPE_BYTES[dtype]) for rank in ranks)


def _stage(placement: Placement, model: ModelShape, rank: int, size: int) -> Stage:
    """The embedding counts where it is the head too: looking a token up reads a row of it alone."""
    last = any(stage.head for stage in placement.stages_of(rank))
    head = model.head_name
    elements, matrices, head_elements = 0, 0, 0
    for name, shape in model.parameters():
        if not placement.holds(name, rank, model) or (
            name == "model.embed_tokens.weight" and not (last and name == head)
        ):
            continue
        count = math.prod(
            s.stop - s.start for s in placement.shard(name, shape, rank, stored=False)
        )
        elements += count
        if name == head:
            head_elements = count
        elif len(shape) == 2:
            matrices += count
    layers = sum(len(stage.layers) for stage in placement.stages_of(rank))
    q_shape = (model.num_heads * model.head_dim, model.hidden_size)
    q = placement.shard("model.layers.0.self_attn.q_proj.weight", q_shape, rank, stored=False)[0]
    attention = (
        4 * layers * (q.stop - q.start)
    )  # queries times keys, weights times values: 2 operations an element each
    return Stage(
        elements * size,
        kv_bytes_per_token(placement, model, rank, size),
        2 * matrices,
        2 * head_elements,
        attention,
    )


def least(
    stages: Sequence[Stage], load: Closed, ceilings: Ceilings, rate: float, separate: bool = True
) -> Bound:
    """The least seconds in which one replica can serve `load`, over every number of micro-batches
    ("micro_batches").

    With l micro_batches a stage streams its weights l times a round, and a micro_batch passes the
    stages one after another, so a round takes max(l x slowest stage, sum of stages) of a pass with
    1/l of the requests. All prompts go through the slowest stage; a micro_batch waits for its own.
    separate: no pass holds both prompts and decoded tokens, so the two add up; else the longer one
    counts.
    """
    prompts = [stage.prefill_flops(load) / rate for stage in stages]
    return min(
        (
            _with_micro_batches(micro_batches, stages, load, ceilings, rate, prompts, separate)
            for micro_batches in range(1, load.together + 1)
        ),
        key=lambda bound: bound.seconds,
    )


def _with_micro_batches(
    micro_batches: int,
    stages: Sequence[Stage],
    load: Closed,
    ceilings: Ceilings,
    rate: float,
    prompts: Sequence[float],
    separate: bool,
) -> Bound:
    passes = [
        stage.pass_s(load.together / micro_batches, load.context, ceilings, rate)
        for stage in stages
    ]
    ways = [
        (prompt, load.rounds * micro_batches * one)
        for prompt, one in zip(prompts, passes, strict=True)
    ]
    ways.append((max(prompts) / micro_batches, load.rounds * sum(passes)))
    bounds = (Bound(sum(way) if separate else max(way), *way, micro_batches) for way in ways)
    return max(bounds, key=lambda bound: bound.seconds)


# -- the columns of a run


def columns(
    plan: EnginePlan, engine: str, row: Mapping[str, Any], ceilings: Ceilings | None
) -> dict[str, Any]:
    """FIELDS for a run of a closed batch of equal requests; with `reason`, the arithmetic, where
    the run is above its bound.

    All are None where lengths differ, tokens were left out (EOS), or nothing is known of the device
    in the run's dtype.
    """
    rate = ceilings.rate(plan.dtype) if ceilings else None
    served = (
        row["input_len"]
        and row["output_len"]
        and row["total_output_tokens"] == row["num_prompts"] * row["output_len"]
    )
    if ceilings is None or not rate or not served or not row["output_throughput"]:
        return {field.name: None for field in FIELDS} | {"reason": None}
    stages, load = (
        stages_of(plan.placement, plan.model, plan.dtype),
        fullest_replica(plan.placement, row),
    )
    bound = least(stages, load, ceilings, rate, engine in SEPARATE)
    highest = row["total_output_tokens"] / bound.seconds
    figures = {
        "bound_output_throughput": highest,
        "bound_pct": 100 * row["output_throughput"] / highest,
        "bound_source": ceilings.source,
        "model_flops_utilization": model_flops_utilization(plan.model, plan.dtype, row, rate),
        "memory_bandwidth_utilization": memory_bandwidth_utilization(
            stages, load, row["decode_ms_per_step"], ceilings
        ),
    }
    above = row["output_throughput"] > highest
    return figures | {
        "reason": _arithmetic(row, bound, ceilings, rate, stages, load) if above else None
    }


def fullest_replica(placement: Placement, row: Mapping[str, Any]) -> Closed:
    """The share of the first data-parallel replica, which is never smaller than another's
    (`Work.share`)."""
    replicas, slots = placement.degree("dp"), row["max_concurrency"]
    mine = sum((index % slots) % replicas == 0 for index in range(row["num_prompts"]))
    return Closed(row["input_len"], row["output_len"], mine, len(range(0, slots, replicas)))


def model_flops_utilization(
    model: ModelShape, dtype: str, row: Mapping[str, Any], rate: float
) -> float:
    """Percent of the GPUs' arithmetic rate that the model's own operations took (MFU, Chowdhery et
    al. 2022, appendix B)."""
    whole = stages_of(Placement.single(model), model, dtype)[0]
    load = Closed(row["input_len"], row["output_len"], row["num_prompts"], row["max_concurrency"])
    operations = whole.prefill_flops(load) + whole.decode_flops(
        load.requests * (load.output_len - 1), load.context
    )
    return 100 * operations / (row["duration"] * row["num_gpus"] * rate)


def memory_bandwidth_utilization(
    stages: Sequence[Stage], load: Closed, step_ms: float | None, ceilings: Ceilings
) -> float | None:
    """Percent of the memory's rate that reading weights and KV took in steady decode, mean over
    stages.

    `step_ms`: from one token of a request to its next; in it a stage serves as many micro-batches
    as there are stages.
    """
    if not step_ms:
        return None
    micro_batches = min(len(stages), load.together)
    read = [
        micro_batches * stage.decode_bytes(load.together / micro_batches, load.context)
        for stage in stages
    ]
    return 100 * sum(read) / len(read) / (step_ms / 1e3) / ceilings.hbm


def _arithmetic(
    row: Mapping[str, Any],
    bound: Bound,
    ceilings: Ceilings,
    rate: float,
    stages: Sequence[Stage],
    load: Closed,
) -> str:
    slowest = max(
        stages,
        key=lambda stage: stage.pass_s(
            load.together / bound.micro_batches, load.context, ceilings, rate
        ),
    )
    requests = load.together / bound.micro_batches
    read, operations = (
        slowest.decode_bytes(requests, load.context),
        slowest.decode_flops(requests, load.context),
    )
    return (
        f"{row['output_throughput']:.1f} tok/s is above the bound of "
        f"{row['total_output_tokens'] / bound.seconds:.1f}: "
        f"{row['total_output_tokens']} tokens in at least {bound.seconds:.4g} s, of which prefill "
        f"{bound.prefill_s:.4g} s "
        f"({bound.prefill_s * rate:.4g} operations of a GPU at {rate / 1e12:.4g} TFLOP/s) and "
        f"decode {bound.decode_s:.4g} s "
        f"({load.rounds:.4g} rounds of {bound.decode_s / max(load.rounds, 1):.4g} s; a pass of "
        "the slowest stage takes the longer "
        f"of {read / 1e9:.4g} GB, less {ceilings.cache_bytes / 1e9:.4g} GB that may stay in a "
        "cache, at "
        f"{ceilings.hbm / 1e9:.4g} GB/s and {operations:.4g} operations); micro-batches: "
        f"{bound.micro_batches}, stages: {len(stages)}; "
        f"ceilings: {ceilings.source}"
    )
