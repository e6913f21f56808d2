"""Why shares of a step are not known, in words: no null is without its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.analysis.observed.communication import UNSEEN, PhaseParts
from orchestrator.analysis.summary import Observed

UNMATCHED = "their calls do not agree over ranks or were not seen"


def sentences(of: Mapping[str, Observed]) -> Iterator[str]:
    """A sentence for each layout that lacks shares, or steps in them; nothing for the others.

    of: what was observed of each layout that has a result, by its name.
    """
    unseen = [name for name, seen in of.items() if not _is_observed(seen)]
    if unseen:
        yield f"No step of {', '.join(unseen)} was observed, so it is not known where time goes."
    for name, seen in of.items():
        if name not in unseen and (said := list(_of_layout(seen))):
            yield f"Steps of {name}: {'; '.join(said)}."


def of_cost(phase: str, is_cut: bool, reason: str) -> str:
    """Why the cost of a phase is not cut into parts, or only that of some starts is."""
    if is_cut:
        return f"{phase} of some starts is left out ({reason})"
    return f"{phase} is not taken apart ({reason})"


def _is_observed(seen: Observed) -> bool:
    phases = (seen.step.decode, seen.step.prefill)
    return any(one.step_ms is not None or one.step_reason not in (None, UNSEEN) for one in phases)


def _of_layout(seen: Observed) -> Iterator[str]:
    cost = seen.cost
    decode = cost.decode.compute is not None, cost.decode_cost_reason
    prefill = cost.prefill.compute is not None, cost.prefill_cost_reason
    yield from _of_phase("decode", seen.step.decode, *decode)
    yield from _of_phase("prefill", seen.step.prefill, *prefill)


def _of_phase(name: str, phase: PhaseParts, is_cut: bool, cost_reason: str | None) -> Iterator[str]:
    if phase.step_reason:
        yield of_cost(name, phase.compute.pct is not None, phase.step_reason)
    if cost_reason and cost_reason != phase.step_reason and _is_seen(phase):
        yield of_cost(f"the cost of {name}", is_cut, cost_reason)
    if phase.steps_unmatched:
        steps = "1 step" if phase.steps_unmatched == 1 else f"{phase.steps_unmatched} steps"
        yield f"{steps} of {name} left out ({UNMATCHED})"


def _is_seen(phase: PhaseParts) -> bool:
    return phase.step_ms is not None
