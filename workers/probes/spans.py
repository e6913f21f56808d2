"""The rows of the spans table, made alike by every probe."""

from __future__ import annotations

from typing import NamedTuple

from workers.intervals import Span
from workers.records import Call, SpanRow


class StepOf(NamedTuple):
    """A step of a rank: the rank, the step's phase and its number in the run."""

    rank: int
    phase: str
    step: int


def span_row(of: StepOf, kind: str, span_us: Span, call: Call | None = None) -> SpanRow:
    """A span of a step. kind: COMPUTE, or the operation of a call. span_us: start and end in
    microseconds. call: what it communicated, None for compute and where that is not known."""
    return SpanRow(
        rank=of.rank,
        phase=of.phase,
        step=of.step,
        kind=kind,
        axis=call.axis if call else None,
        call_phase=call.phase if call else None,
        bytes=call.bytes if call else None,
        start_us=span_us[0],
        end_us=span_us[1],
    )
