"""The steps of an observed run: when each was, and which of them count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from orchestrator.analysis.observed.matching import Place
from strategies.placement import Placement
from workers.intervals import Span
from workers.records import DECODE, PREFILL, SpanRow
from workers.rows import grouped

EXCERPT = 4  # steps of a phase
PHASES = (PREFILL, DECODE)

Step = TypeVar("Step")


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of one phase of one rank. counted: when each was, from the end of the step before
    to its own. left_out: why each of these does not count."""

    counted: Mapping[int, Span]
    left_out: Mapping[int, str]


def settled(phase: str, steps: Sequence[Step], placement: Placement) -> Sequence[Step]:
    """`steps` of a phase, in order, without the first ones; the last one alone where there are no
    others.

    The first step of prefill waits for ranks that began later. The first decode step of each
    micro-batch, of which there are as many as stages, waits until every other stage is done with
    prefill: that is of a phase's change, not of its steps.
    """
    return steps[placement.degree("pp") if phase == DECODE else 1 :] or steps[-1:]


def steps_of(
    rank: int, spans: Sequence[SpanRow], unmatched: Mapping[Place, str], placement: Placement
) -> dict[str, Steps]:
    """The settled steps of one rank by phase, with those that cannot count.

    These are the steps of `unmatched`, which says why, and each one after them: where a call was
    not seen, nobody knows when its step ended.
    """
    whens = _windows(spans)
    phases = grouped(sorted({(span.step, span.phase) for span in spans}), lambda one: one[1])

    def why_not(step: int) -> str | None:
        if step not in whens:
            return "nothing of it was seen, or not the step before it"
        before = unmatched.get(Place(rank, step - 1))
        return unmatched.get(Place(rank, step)) or (before and f"the step before: {before}")

    out = {}
    for phase in (phase for phase in PHASES if phase in phases):
        steps = settled(phase, [step for step, _ in phases[phase]], placement)
        left_out = {step: why for step in steps if (why := why_not(step))}
        out[phase] = Steps({s: whens[s] for s in steps if s not in left_out}, left_out)
    return out


def _windows(spans: Sequence[SpanRow]) -> dict[int, Span]:
    """Step -> when it was, from the end of the step before to its own; the first one from its first
    span. A step that follows none that was seen is left out.

    What a rank sends goes on beside its next step, so it does not end one.
    """
    times = [(span, when) for span in spans if (when := span.when)]
    ends: dict[int, float] = {}
    for span, (_, end) in times:
        if span.kind != "send":
            ends[span.step] = max(end, ends.get(span.step, end))
    first = min(ends, default=0)
    out: dict[int, Span] = {}
    before = min((start for span, (start, _) in times if span.step == first), default=0.0)
    for step in sorted(ends):
        end = max(ends[step], before)
        if step == first or step - 1 in ends:
            out[step] = (before, end)
        before = end
    return out


def excerpt(spans: pa.Table, placement: Placement) -> pa.Table:
    """The spans of the first steps of each phase that count: enough to look at, few to keep."""
    steps: dict[str, set[int]] = defaultdict(set)
    places = list(zip(*(spans.column(name).to_pylist() for name in ("phase", "step")), strict=True))
    for phase, step in places:
        steps[phase].add(step)
    kept = {
        (phase, step)
        for phase in PHASES
        for step in settled(phase, sorted(steps[phase]), placement)[:EXCERPT]
    }
    return spans.filter(pa.array([place in kept for place in places], type=pa.bool_()))
