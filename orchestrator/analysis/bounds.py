"""What the hardware could do, as columns of a run.

A run is held to what the maker says of its devices. What was measured of them gives percentages
alone: a median of measurements is passed by a good run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from orchestrator.analysis.least import SEPARATE, Bound, least
from orchestrator.analysis.roofline import Ceilings, Closed, Rates, Stage, stages_of
from orchestrator.analysis.throughput import Throughput
from strategies.placement import Placement
from workers.messages import EnginePlan, dealt
from workers.rows import column, nothing, row

ROOFLINE = "roofline, Williams et al. 2009"


@row
class Bounds:
    """What the hardware could do for the tokens that were made. Null where a request made none,
    nothing is known of the device in the run's dtype, or prompts may be found in a prefix cache."""

    bound_output_throughput: float | None = column(
        "generated tokens per second that memory bandwidth and arithmetic allow this placement if "
        "communication takes no time, at the rates of bound_source",
        "tokens/s",
        source=ROOFLINE,
        over_runs="mean",
    )
    bound_pct: float | None = column(
        "output_throughput in percent of the bound; above 100 where a run is faster than the "
        "rates that were measured of its devices",
        "%",
        formula="100 x output_throughput / bound_output_throughput",
        over_runs="mean",
    )
    model_flops_utilization: float | None = column(
        "the model's own operations, in percent of the arithmetic rate of all GPUs in their data "
        "sheet; null where that is unknown, as of a CPU",
        "%",
        source="PaLM, Chowdhery et al. 2022, appendix B",
        over_runs="mean",
    )
    memory_bandwidth_utilization: float | None = column(
        "reading weights and KV in steady decode, in percent of the memory's rate in the data "
        "sheet, mean over stages; null where that is unknown, as of a CPU",
        "%",
        source="LLM Inference Performance Engineering, Databricks 2023",
        over_runs="mean",
    )
    bound_source: str | None = column(
        "where the bound's rates come from: calibrated (measured on such a device) or datasheet",
        over_runs="first",
    )


@dataclass(frozen=True, slots=True)
class Roof:
    """The bound of one replica's load, and what it was worked out of. tokens: of all replicas."""

    stages: tuple[Stage, ...]
    load: Closed
    rates: Rates
    bound: Bound
    tokens: int

    @property
    def highest(self) -> float:
        """Generated tokens per second of all replicas."""
        return self.tokens / self.bound.seconds

    @classmethod
    def of(cls, plan: EnginePlan, engine: str, loads: Sequence[Closed], rates: Rates) -> Roof:
        """The bound of the slowest replica of a plan. loads: of each."""
        stages = stages_of(plan.placement, plan.model, plan.precision)
        tokens = sum(load.output_tokens for load in loads)
        roofs = (
            cls(stages, load, rates, least(stages, load, rates, engine in SEPARATE), tokens)
            for load in dict.fromkeys(loads)
        )
        return max(roofs, key=lambda roof: roof.bound.seconds)


def bounds_of(
    plan: EnginePlan,
    engine: str,
    loads: Sequence[Closed],
    made: Throughput,
    ceilings: Ceilings | None,
    sheet: Ceilings | None,
) -> tuple[Bounds, str | None]:
    """The bounds of a run, and the arithmetic where it claims more than the data sheet allows.

    loads: of each replica, by the tokens that were made. made: what the run made of it.
    ceilings: what its devices can do as measured; the bound is worked out of the data sheet where
    they do not know the dtype. sheet: the data sheet; without it no run is refused.
    """
    if made.failed or not (loads and made.output_throughput and made.duration):
        return nothing(Bounds), None
    reached = made.output_throughput
    limit, measured = (_roof(plan, engine, loads, one) for one in (sheet, ceilings))
    roof, source = (measured, ceilings) if measured else (limit, sheet)
    device_s = made.duration * plan.placement.num_ranks
    flops, step_ms = model_flops(plan, loads), made.decode_ms_per_step
    bounds = Bounds(
        bound_output_throughput=roof.highest if roof else None,
        bound_pct=100 * reached / roof.highest if roof else None,
        bound_source=source.source if roof and source else None,
        model_flops_utilization=100 * flops / (device_s * limit.rates.flops) if limit else None,
        memory_bandwidth_utilization=memory_bandwidth_utilization(plan, loads, step_ms, sheet),
    )
    return bounds, _arithmetic(limit, reached) if limit and reached > limit.highest else None


def _roof(
    plan: EnginePlan, engine: str, loads: Sequence[Closed], ceilings: Ceilings | None
) -> Roof | None:
    rates = ceilings.rates(plan.fastest_dtype) if ceilings else None
    return Roof.of(plan, engine, loads, rates) if rates else None


def loads_of(
    requests: pa.Table, placement: Placement, seats: int, first_turns: Mapping[int, int]
) -> list[Closed]:
    """What each data-parallel replica served, those left out that served nothing.

    requests: table REQUESTS. seats: of all replicas. first_turns: request -> the first one of its
    conversation, by their indices. Of a conversation one request at a time is in flight.
    """
    names = ("request_index", "replica", "input_len", "output_len")
    served: dict[int, list[tuple[int, int]]] = {}
    passes: dict[int, Counter[int]] = {}
    for index, replica, read, made in zip(
        *(requests.column(name).to_pylist() for name in names), strict=True
    ):
        served.setdefault(replica, []).append((read, made))
        passes.setdefault(replica, Counter())[first_turns[index]] += max(made - 1, 0)
    replicas = placement.degree("dp")

    def load(replica: int) -> Closed:
        its = passes[replica]
        most = min(dealt(len(its), seats, replica, replicas).seats, len(its))
        return Closed.of(served[replica], most, max(its.values()))

    return [load(replica) for replica in sorted(served)]


def model_flops(plan: EnginePlan, loads: Sequence[Closed]) -> float:
    """The operations of the model itself for `loads`, whatever is done twice."""
    whole = stages_of(Placement.single(plan.model), plan.model, plan.precision)[0]
    return sum(
        whole.prefill_flops(load) + whole.decode_flops(load.decoded, whole.context(load))
        for load in loads
    )


def memory_bandwidth_utilization(
    plan: EnginePlan, loads: Sequence[Closed], step_ms: float | None, sheet: Ceilings | None
) -> float | None:
    """Percent of the memory's rate that reading weights and KV took in steady decode, mean over the
    stages of the fullest replica; None where a time or the rate is unknown.

    step_ms: from one token of a request to its next; in it a stage serves as many micro-batches as
    there are stages. Where outputs differ in length, requests in flight are their mean over the
    passes that the longest one, or conversation, takes at least.
    """
    if not step_ms or sheet is None:
        return None
    stages = stages_of(plan.placement, plan.model, plan.precision)
    load = max(loads, key=lambda one: one.decoded)
    micro_batches = min(len(stages), load.in_flight)
    in_flight = load.decoded / max(load.rounds, load.least_passes, 1)
    requests = in_flight / micro_batches
    read = [micro_batches * stage.decode_bytes(requests, stage.context(load)) for stage in stages]
    return 100 * sum(read) / len(read) / (step_ms / 1e3) / sheet.hbm


def _arithmetic(roof: Roof, reached: float) -> str:
    load, rates, bound = roof.load, roof.rates, roof.bound
    requests = load.in_flight / bound.micro_batches
    slowest = max(roof.stages, key=lambda one: one.pass_s(requests, one.context(load), rates))
    context = slowest.context(load)
    read = slowest.decode_bytes(requests, context)
    operations = slowest.decode_flops(requests, context)
    round_s = bound.decode_s / max(load.rounds, 1)
    return (
        f"{reached:.1f} tok/s is above the bound of {roof.highest:.1f} by the data sheet: "
        f"{roof.tokens} tokens in at least {bound.seconds:.4g} s, "
        f"of which prefill {bound.prefill_s:.4g} s ({bound.prefill_passes} times "
        f"{slowest.streamed / 1e9:.4g} GB of weights, and "
        f"{slowest.prefill_flops(load):.4g} operations of a GPU at {rates.flops / 1e12:.4g} "
        f"TFLOP/s) and decode {bound.decode_s:.4g} s "
        f"({load.rounds:.4g} rounds of {round_s:.4g} s; a pass of the slowest stage takes the "
        f"longer of {read / 1e9:.4g} GB, less {rates.cache_bytes / 1e9:.4g} GB that may stay in a "
        f"cache, at {rates.memory / 1e9:.4g} GB/s and {operations:.4g} operations); "
        f"micro-batches: {bound.micro_batches}, stages: {len(roof.stages)}"
    )
