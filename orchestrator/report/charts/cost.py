"""What a token costs under each layout and load: device time, cut into parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.device_time import PhaseTime
from orchestrator.analysis.token_cost import Parts
from orchestrator.report.charts import unshown
from orchestrator.report.charts.views import Names, View, rounded, view
from workers.records import DECODE, PREFILL
from workers.rows import widened
from workers.units import device_ms

REST = "rest"  # the one part that may be below 0
UNCUT = "uncut"
BESIDE = ("transfer", "wait", "fused", "bubble", "launch_gap")


@dataclass(frozen=True)
class CostFigures(View):
    """The cost of a token of one cell, mean over its starts.

    unit: GPU-ms or worker-ms. total: all of it. parts: name -> how much of it; a phase that is not
    taken apart is a part of its own, named after it, and so is a run: `uncut`. comm, bubble:
    percent of the device time of the whole run. source: of the rates behind weights, KV and
    arithmetic. reasons: why a phase is not taken apart,
    or that of some starts is not.
    """

    unit: str
    total: float | None
    parts: Mapping[str, float | None]
    comm: float | None
    bubble: float | None
    source: str | None
    reasons: Sequence[str]


def cost(comparison: Iterable[Comparison], names: Names) -> list[CostFigures]:
    """A row for each cell whose device time is known."""
    known = (one for one in comparison if one.device_time.device_ms_per_token is not None)
    return [_figures(one, names) for one in known]


def _figures(one: Comparison, names: Names) -> CostFigures:
    return widened(
        CostFigures,
        view(one.cell, names),
        unit=device_ms(one.conditions.device_name),
        total=rounded(one.device_time.device_ms_per_token),
        parts={name: rounded(value) for name, value in _parts(one).items()},
        comm=rounded(one.cost.run_comm_exposed_pct),
        bubble=rounded(one.cost.run_bubble_pct),
        source=one.device_time.roofline_source,
        reasons=_reasons(one),
    )


def _parts(one: Comparison) -> dict[str, float]:
    """Name -> device-ms. What differences of clocks and of rounding bring below 0 is 0."""
    time, cost = one.device_time, one.cost
    if time.outside_ms_per_token is None:
        return {UNCUT: time.device_ms_per_token or 0.0}
    whole = {"ramp": time.ramp_ms_per_token or 0.0, "outside": time.outside_ms_per_token}
    phases = _phase(DECODE, time.decode, cost.decode), _phase(PREFILL, time.prefill, cost.prefill)
    for part, value in (pair for phase in phases for pair in phase.items()):
        whole[part] = whole.get(part, 0.0) + value
    return {part: value if part == REST else max(0.0, value) for part, value in whole.items()}


def _phase(name: str, time: PhaseTime, parts: Parts) -> dict[str, float]:
    if parts.compute is None:
        return {name: (time.device_ms_per_token or 0.0) - (time.ramp_ms_per_token or 0.0)}
    cut = {"compute": parts.compute}
    if parts.rest is not None:
        cut = {**vars(time.roofline), REST: parts.rest}
    beside = {part: getattr(parts, part) for part in BESIDE}
    return cut | {part: value for part, value in beside.items() if value is not None}


def _reasons(one: Comparison) -> list[str]:
    if one.device_time.device_time_reason:
        return [one.device_time.device_time_reason]
    phases = {
        DECODE: (one.cost.decode, one.cost.decode_cost_reason),
        PREFILL: (one.cost.prefill, one.cost.prefill_cost_reason),
    }
    return [
        unshown.of_cost(phase, parts.compute is not None, reason)
        for phase, (parts, reason) in phases.items()
        if reason
    ]
