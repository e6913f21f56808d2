"""Made-up spans of an observed run, and what becomes of them. Times are in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from orchestrator.analysis.observed.accounting import (
    PARTS,
    PARTS_OF_STEP,
    TIMED,
    PartsRow,
    TimedRow,
    account,
)
from orchestrator.analysis.observed.booking import WAITS
from strategies import Load, ModelShape, Placement, Topology, plan_layout
from workers.records import COMPUTE, SPANS, STALL, STEPS, SpanRow, StepRow
from workers.rows import flat

MODEL = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)


def placed(layout: str) -> Placement:
    return plan_layout(layout, MODEL, Load(8, 8, 4), Topology.uniform(4)).placement


def span(
    rank: int,
    step: int,
    kind: str,
    start: float | None,
    end: float | None,
    axis: str | None = None,
    size: int = 0,
    phase: str = "decode",
    carried: int | None = None,
    fused: bool = False,
) -> SpanRow:
    """A span; start and end None: a call that was not seen. carried: the step whose tokens a call
    carries, its own where it is None."""
    return SpanRow(
        rank=rank,
        phase=phase,
        step=step,
        kind=kind,
        fused=None if kind in (COMPUTE, STALL) else fused,
        axis=axis,
        call_phase=phase if axis else None,
        call_step=(step if carried is None else carried) if axis else None,
        bytes=size if axis else None,
        start_us=None if start is None else start * 1e3,
        end_us=None if end is None else end * 1e3,
    )


def step(rank: int, number: int, end_ms: float, phase: str = "decode") -> StepRow:
    """A step of the same work without a probe."""
    return StepRow(
        rank=rank,
        step=number,
        phase=phase,
        micro_batch=0,
        num_requests=1,
        num_tokens=1,
        end_s=end_ms / 1e3,
    )


def parts(
    rows: Iterable[SpanRow], layout: str, timed: Iterable[StepRow] | None = None
) -> list[PartsRow]:
    unprobed = None if timed is None else STEPS.make(timed)
    return PARTS_OF_STEP.rows(account(SPANS.make(rows), placed(layout), unprobed)["parts"])


def decode(rows: Iterable[SpanRow], layout: str) -> dict[int, PartsRow]:
    """rank -> its decode steps."""
    return {one.rank: one for one in parts(rows, layout) if one.phase == "decode"}


def figures(rows: Iterable[SpanRow], layout: str) -> dict[int, dict[str, float]]:
    """rank -> the decode step's parts in ms that are not 0, rounded to the nanosecond.

    Checks that they sum to what they are parts of.
    """
    out = {}
    for rank, row in decode(rows, layout).items():
        ms = {name[:-3]: value for name, value in flat(row).items() if name[-3:] == "_ms"}
        assert ms["step"] == pytest.approx(sum(ms[part] for part in PARTS))
        assert ms["exposed_wait"] == pytest.approx(sum(ms[part] for part in WAITS))
        out[rank] = {name: round(value, 6) for name, value in ms.items() if round(value or 0, 6)}
    return out


def timed(rows: Iterable[SpanRow], layout: str) -> list[TimedRow]:
    return TIMED.rows(account(SPANS.make(rows), placed(layout))["timed_collectives"])
