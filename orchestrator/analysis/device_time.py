"""What a token costs: the time of all devices in a timed run, by phase, and what the roofline says
each phase takes at least.

A device-second is a second of one rank, whatever it does in it. So the total is the same sum for
every layout: duration x devices. A rank's own steps cut it (`rank_time`), and what is in no step is
outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from orchestrator.analysis.rank_time import Spent, decode_of, prefill_of, ranks_of
from orchestrator.analysis.roofline import Ceilings
from orchestrator.analysis.throughput import Throughput
from workers.messages import EnginePlan, RankReport
from workers.rows import column, group, nothing, row

DEVICE_MS = "device-milliseconds: GPU-ms on GPUs, worker-ms on a CPU"


@row
class Roofline:
    """What a phase takes at least, all devices together, for each token that the run made."""

    weights: float | None = column(
        "{about}: streaming the weights of its rank once a step, over all ranks",
        "ms",
        formula="weight bytes x steps / memory bandwidth",
        over_runs="mean",
    )
    kv: float | None = column(
        "{about}: reading the keys and values of earlier tokens",
        "ms",
        formula="bytes of keys and values / memory bandwidth",
        over_runs="mean",
    )
    arithmetic: float | None = column(
        "{about}: operations, as far as they take longer than weights and KV",
        "ms",
        formula="max(0, operations / arithmetic rate - weights - kv), of each rank",
        over_runs="mean",
    )


@row
class PhaseTime:
    """The time of all devices in one phase. The roofline is null where nothing is known of the
    devices in the run's dtype; KV and arithmetic also where it is not known which tokens were read
    again."""

    device_ms_per_token: float | None = column(
        "{about}: time of all devices for each token of the run", "ms", over_runs="mean"
    )
    ramp_ms_per_token: float | None = column(
        "{about}: what its first steps take beyond the pace of the others, while a pipeline fills "
        "and phases change",
        "ms",
        over_runs="mean",
    )
    steps_s_per_rank: Sequence[float] | None = column(
        "{about}: time of each rank in its steps, without that", "s"
    )
    roofline: Roofline = group("{}_ms_per_token", "{about}")


@row
class DeviceTime:
    """The time of all devices in the timed run. Decode, prefill and what is outside of steps sum to
    the total; a phase's ramp is a part of it."""

    device_ms_per_token: float | None = column(
        f"time of all devices for each token made, in {DEVICE_MS}",
        "ms",
        formula="1000 x duration x num_gpus / total_output_tokens",
        over_runs="mean",
    )
    outside_ms_per_token: float | None = column(
        "the part of it in which a rank has no step: after its last one, or while it has no "
        "request",
        "ms",
        over_runs="mean",
    )
    ramp_ms_per_token: float | None = column(
        "the part of it that the first steps of both phases take beyond the pace of the others",
        "ms",
        over_runs="mean",
    )
    roofline: Roofline = group("{}_ms_per_token", "prefill and decode")
    decode: PhaseTime = group("decode_{}", "decode")
    prefill: PhaseTime = group("prefill_{}", "prefill")
    device_time_reason: str | None = column("why it is not cut by phase", over_runs="first")
    roofline_source: str | None = column(
        "where the rates behind weights, KV and arithmetic come from: calibrated or datasheet",
        over_runs="first",
    )


def device_time_of(
    plan: EnginePlan,
    made: Throughput,
    reports: Sequence[RankReport],
    requests: pa.Table,
    ceilings: Ceilings | None,
) -> DeviceTime:
    """The device time of a run. requests: table REQUESTS of all ranks."""
    tokens, num_ranks = made.total_output_tokens, plan.placement.num_ranks
    if not tokens or not made.duration:
        return nothing(DeviceTime)
    per_token = 1e3 / tokens
    total = made.duration * num_ranks * per_token
    if reason := _unknown(reports, num_ranks):
        return replace(nothing(DeviceTime), device_ms_per_token=total, device_time_reason=reason)
    rates = ceilings.rates(plan.fastest_dtype) if ceilings else None
    ranks = ranks_of(plan, reports, requests)
    decode = [decode_of(one, rates) for one in ranks]
    prefill = [prefill_of(one, rates) for one in ranks]
    both = _phase_time([*decode, *prefill], per_token)
    return DeviceTime(
        device_ms_per_token=total,
        outside_ms_per_token=total - (both.device_ms_per_token or 0.0),
        ramp_ms_per_token=both.ramp_ms_per_token,
        roofline=both.roofline,
        decode=_phase_time(decode, per_token),
        prefill=_phase_time(prefill, per_token),
        device_time_reason=None,
        roofline_source=ceilings.source if ceilings and rates else None,
    )


def _unknown(reports: Sequence[RankReport], num_ranks: int) -> str | None:
    """Why the time cannot be cut by phase; None where it can."""
    if len(reports) < num_ranks:
        return f"{len(reports)} of {num_ranks} ranks report their steps"
    return None if any(one.steps.num_rows for one in reports) else "no rank reports any step"


def _phase_time(ranks: Sequence[Spent], per_token: float) -> PhaseTime:
    def total(part: Callable[[Spent], float | None]) -> float | None:
        known = [value for value in map(part, ranks) if value is not None]
        return sum(known) * per_token if len(known) == len(ranks) else None

    return PhaseTime(
        device_ms_per_token=total(lambda one: one.steps + one.ramp),
        ramp_ms_per_token=total(lambda one: one.ramp),
        steps_s_per_rank=[one.steps for one in ranks],
        roofline=Roofline(
            weights=total(lambda one: one.weights),
            kv=total(lambda one: one.kv),
            arithmetic=total(lambda one: one.arithmetic),
        ),
    )
