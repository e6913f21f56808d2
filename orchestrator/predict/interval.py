"""How far a prediction may be off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.predict.factors import EngineFactors
from orchestrator.predict.passes import Setting
from orchestrator.predict.replica import Lengths, micro_batches

WIDEST = math.log(10)  # a half width beyond which an interval says nothing
# A value this many times outside of a range still counts as inside.
MARGIN = 1.25

# A range of `factors.Fitted` -> what it is called in a sentence, and in what it is said.
NAMED = {
    "rows": ("requests in a pass", 1),
    "stage_bytes": ("GB of weights on a GPU", 1e9),
    "input_len": ("tokens of a prompt", 1),
    "kv_share": ("bytes of KV over those of weights", 1),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 90% interval."""

    value: float
    low: float
    high: float


def estimate(
    value: float, metric: str, factors: EngineFactors, beyond: tuple[str, ...]
) -> Estimate:
    """The interval is value x exp(-w) to value x exp(w).

    w: the half width of the fit's residuals |log(measured / predicted)|, each layout left out in
    turn, and once more for each way in which the case lies outside of where factors were fitted.
    The second is a rule, checked by the coverage of cells that were held out.
    """
    width = half_width(metric, factors, beyond)
    return Estimate(value, value * math.exp(-width), value * math.exp(width))


def half_width(metric: str, factors: EngineFactors, beyond: tuple[str, ...]) -> float:
    """That of an interval, as a logarithm."""
    return factors.half_width[metric] * (1 + len(beyond))


def if_known(
    value: float, metric: str, factors: EngineFactors, beyond: tuple[str, ...]
) -> Estimate | None:
    """The estimate; None where its interval is wider than a factor of ten each way."""
    is_known = half_width(metric, factors, beyond) <= WIDEST
    return estimate(value, metric, factors, beyond) if is_known else None


def outside(setting: Setting, lengths: Lengths, requests: int) -> tuple[str, ...]:
    """In what a case lies outside of where the factors were fitted."""
    return tuple(_outside(setting, seen_of(setting, lengths, requests)))


def outside_few(setting: Setting, requests: int) -> tuple[str, ...]:
    """Where the factors of few rows are of other GPUs than the rest, or a replica has more than
    those they were fitted on. Prompts have more rows, so it says nothing of a TTFT."""
    few, placed = setting.few(requests / micro_batches(setting, requests)), setting.placed
    found, gpu = [], placed.hardware.name
    if few is not None and gpu not in few.gpus and gpu in setting.factors.fitted.gpus:
        found.append(f"few rows on {gpu}, fitted on {', '.join(few.gpus)}")
    if few is not None and placed.placement.replica_ranks > few.most_ranks:
        ranks = placed.placement.replica_ranks
        found.append(f"few rows over {ranks} GPUs, fitted on {few.most_ranks} at most")
    return tuple(found)


def has_other_kernels(setting: Setting) -> bool:
    """Whether matrices or KV are of a type whose kernels no factor was fitted on."""
    return setting.placed.precision.name not in setting.factors.fitted.quantizations


def seen_of(setting: Setting, lengths: Lengths, requests: int) -> dict[str, float]:
    """What factors are fitted over; see `factors.Fitted`. requests: of one replica."""
    placed, rows = setting.placed, requests / micro_batches(setting, requests)
    fullest = max(setting.stages, key=lambda one: one.weight_bytes)
    return {
        "rows": rows,
        "stage_bytes": fullest.weight_bytes,
        "tp": placed.placement.degree("tp"),
        "pp": placed.placement.degree("pp"),
        "input_len": lengths.input_len,
        "kv_share": rows * lengths.context * fullest.kv_bytes / fullest.weight_bytes,
    }


def _outside(setting: Setting, seen: Mapping[str, float]) -> Iterator[str]:
    fitted, placed = setting.factors.fitted, setting.placed
    if placed.hardware.name not in fitted.gpus:
        yield f"GPU {placed.hardware.name}, fitted on {', '.join(fitted.gpus)}"
    if has_other_kernels(setting):
        yield f"quantization {placed.precision.name}"
    if any(span.nodes > 1 for span in placed.groups.values()):
        yield "several nodes"
    for name, (low, high) in fitted.ranges.items():
        value = seen[name]
        if not low / MARGIN <= value <= high * MARGIN:
            what, unit = NAMED.get(name, (name, 1))
            value, low, high = value / unit, low / unit, high / unit
            yield f"{what} {value:.3g}, fitted from {low:.3g} to {high:.3g}"
