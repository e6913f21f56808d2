"""The rows of the spans table, made alike by every probe."""

from __future__ import annotations

from typing import NamedTuple

from workers.intervals import Span
from workers.records import COMPUTE, STALL, Call, SpanRow


class StepOf(NamedTuple):
    """A step of a rank: the rank, the step's phase and its number in the run."""

    rank: int
    phase: str
    step: int


def span_row(
    of: StepOf, kind: str, span_us: Span | None, call: Call | None = None, *, fused: bool = False
) -> SpanRow:
    """A span of a step.

    kind: COMPUTE, STALL, or the operation of a call. span_us: start and end in microseconds, None
    for a call that was not seen. call: what it communicated, None for compute and where that is not
    known. fused: the kernel of a call also computes.
    """
    start_us, end_us = span_us or (None, None)
    return SpanRow(
        rank=of.rank,
        phase=of.phase,
        step=of.step,
        kind=kind,
        fused=None if kind in (COMPUTE, STALL) else fused,
        axis=call.axis if call else None,
        call_phase=call.phase if call else None,
        call_step=_step_carried(call, of) if call else None,
        bytes=call.bytes if call else None,
        start_us=start_us,
        end_us=end_us,
    )


def _step_carried(call: Call, of: StepOf) -> int:
    return of.step if call.step is None else call.step
