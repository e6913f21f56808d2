"""The step taken apart: from the spans of all ranks to compute, transfer, wait, bubble and gap.

How calls are matched over ranks, and which part of one is transfer, is in `matching.py`; how each
stretch of a rank's time is booked in `booking.py`; which steps count in `steps.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from types import MappingProxyType

import pyarrow as pa

from orchestrator.analysis.observed.booking import WAITS, Booked, book
from orchestrator.analysis.observed.matching import EDGES, Transfer, match
from orchestrator.analysis.observed.steps import PHASES, Steps, excerpt, steps_of
from orchestrator.store.schema import StartKey
from strategies.placement import Placement
from strategies.traffic import bus_factor
from workers.intervals import Span, intersect, length, union
from workers.records import SPANS, STEPS, AttentionTime, CollectiveRow, SpanRow, StepRow
from workers.rows import Table, column, grouped, nothing, row

NCCL_TESTS = "nccl-tests, PERFORMANCE.md"
PARTS = ("compute", "exposed_transfer", "exposed_wait", "bubble", "fused", "launch_gap")


@row
class PartsRow:
    """The steps of one phase on one rank, taken apart: means over the steps of an observed run.

    compute, exposed transfer, exposed wait, bubble, fused and launch gap sum to step_ms. All of it
    is null where no step is left.
    """

    rank: int = column("rank of the placement", "1")
    phase: str = column("prefill or decode")
    steps: int = column("steps that count", "1")
    steps_unmatched: int | None = column(
        "steps left out: their calls do not agree over ranks or were not seen, or it is not known "
        "when they began",
        "1",
    )
    reason: str | None = column("why steps are left out, of most of them; null where none is")
    step_ms: float | None = column("from the end of the step before to its own", "ms")
    compute_ms: float | None = column("a kernel that is no communication runs", "ms")
    exposed_transfer_ms: float | None = column("data move, and nothing computes", "ms")
    exposed_wait_ms: float | None = column(
        "a collective waits for its last rank, and nothing computes", "ms"
    )
    wait_compute_ms: float | None = column("of that: the last rank computed longer", "ms")
    wait_launch_ms: float | None = column(
        "of that: nothing ran for longer on the last rank, whose host was late", "ms"
    )
    wait_communication_ms: float | None = column(
        "of that: the last rank communicated longer, or the call ended later here", "ms"
    )
    bubble_ms: float | None = column(
        "a hand-over waits for another stage, here or on the last rank of a collective, or the "
        "host waits for one before it launches a hand-over, and nothing computes",
        "ms",
    )
    fused_ms: float | None = column(
        "a kernel that communicates and computes runs, and all of its ranks have come", "ms"
    )
    launch_gap_ms: float | None = column("nothing runs", "ms")
    comm_busy_ms: float | None = column(
        "communication, hidden or not, with all of the fused kernels", "ms"
    )
    timed_step_ms: float | None = column(
        "a step of the same work served without a probe, median over the steps that count; null "
        "where it was not served",
        "ms",
    )
    profile_ratio: float | None = column("median of the observed steps over timed_step_ms", "1")
    whole: bool | None = column("whether all spans are kept, not those of a few steps")
    attention_ms: float | None = column(
        "attention of the fullest step, all layers of the rank, run by itself after the observed "
        "run; null where an engine cannot",
        "ms",
    )
    attention_tflops: float | None = column(
        "multiplications and additions of its scores and sums over that time",
        "TFLOP/s",
        formula="4 x heads x head_dim x pairs of tokens / time",
        source="Dao et al. 2022",
    )


@row
class CallTiming:
    """What the calls of one operation took in an observed run: means over the calls."""

    group_size: int | None = column("ranks of the group; 2 for a hand-over", "1")
    transfer_us: float | None = column(
        "data of a call move; null where the kernel of a call also computes", "us"
    )
    wait_us: float | None = column("a call waits for its last rank", "us")
    algbw: float | None = column("bytes over transfer", "GB/s", source=NCCL_TESTS)
    busbw: float | None = column(
        "algbw times the bus factor of the operation", "GB/s", source=NCCL_TESTS
    )


@row
class TimedRow(CallTiming, CollectiveRow):
    """The calls of one operation of one rank in an observed run."""


@row
class CellParts(PartsRow, StartKey):
    """A row of the table `parts`, as it is kept."""


@row
class CellTimed(TimedRow, StartKey):
    """A row of the table `timed_collectives`, as it is kept."""


# The columns that a step's windows give.
MILLISECONDS = tuple(f"{name}_ms" for name in ("step", *PARTS, *WAITS, "comm_busy"))
PARTS_OF_STEP = Table("parts", PartsRow)
TIMED = Table("timed_collectives", TimedRow)
CELL_PARTS = Table("parts", CellParts)
CELL_TIMED = Table("timed_collectives", CellTimed)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one rank did: its time by part, its calls, and its steps by phase."""

    rank: int
    booked: Booked
    calls: Sequence[Transfer]
    steps: Mapping[str, Steps]


def account(
    spans: pa.Table | None,
    placement: Placement,
    timed: pa.Table | None = None,
    whole: bool = False,
    unseen: Mapping[int, str] = MappingProxyType({}),
    attention: Mapping[tuple[int, str], AttentionTime] = MappingProxyType({}),
) -> dict[str, pa.Table]:
    """The tables of an observed run, from the spans of all ranks (table SPANS).

    `spans` (all of them where `whole`, else an excerpt), `parts` (PARTS_OF_STEP) and
    `timed_collectives` (TIMED); empty where nothing was seen. Of each phase its `settled` steps
    count. timed: table STEPS of all ranks, of the very same work served without a probe; None where
    it was not, then nobody knows what the probe costs. placement: its mesh alone is looked at.
    unseen: ranks of which there are no spans, and why. attention: of a rank and phase, by itself.
    """
    kept = SPANS.schema.empty_table() if spans is None else spans
    ranks = _by_rank(SPANS.rows(kept), placement)
    unprobed = {} if timed is None else _step_lengths(STEPS.rows(timed))
    return {
        "spans": kept if whole else excerpt(kept, placement),
        "timed_collectives": TIMED.make(_timed_collectives(ranks, placement)),
        "parts": PARTS_OF_STEP.make(
            [
                *(
                    _parts(one, phase, unprobed, whole, attention.get((one.rank, phase)))
                    for one in ranks
                    for phase in one.steps
                ),
                *(
                    _no_parts(rank, phase, why, whole)
                    for rank, why in unseen.items()
                    for phase in PHASES
                ),
            ]
        ),
    }


def _by_rank(spans: Sequence[SpanRow], placement: Placement) -> list[Seen]:
    mine = grouped(spans, lambda span: span.rank)
    matched = match(spans, placement)
    calls = grouped(matched.calls, lambda call: call.rank)
    booked = book(mine, calls, matched.clocks)
    return [
        Seen(
            rank,
            booked[rank],
            calls.get(rank, ()),
            steps_of(rank, mine[rank], matched.unmatched, placement),
        )
        for rank in sorted(mine)
    ]


# -- the parts of a step


def _parts(
    seen: Seen,
    phase: str,
    unprobed: Mapping[tuple[int, int, str], float],
    whole: bool,
    attention: AttentionTime | None,
) -> PartsRow:
    steps = seen.steps[phase]
    windows = steps.counted
    reasons = Counter(steps.left_out.values()).most_common(1)
    known = {step: unprobed.get((seen.rank, step, phase)) for step in windows}
    lengths = [ms for ms in known.values() if ms is not None]
    observed = [length([windows[step]]) / 1e3 for step, ms in known.items() if ms is not None]
    timed_ms = median(lengths) if lengths else None
    return PartsRow(
        rank=seen.rank,
        phase=phase,
        steps=len(windows),
        steps_unmatched=len(steps.left_out),
        reason=reasons[0][0] if reasons else None,
        timed_step_ms=timed_ms,
        profile_ratio=median(observed) / timed_ms if timed_ms else None,
        whole=whole,
        attention_ms=attention and 1e3 * attention.seconds,
        attention_tflops=attention and attention.operations / attention.seconds / 1e12,
        **_per_step_ms(seen.booked, list(windows.values())),
    )


def _no_parts(rank: int, phase: str, reason: str, whole: bool) -> PartsRow:
    """The row of a rank of which nothing was seen."""
    return replace(nothing(PartsRow), rank=rank, phase=phase, steps=0, reason=reason, whole=whole)


def _per_step_ms(booked: Booked, windows: Sequence[Span]) -> dict[str, float | None]:
    """Each part in ms of a step, the mean over the steps that were in `windows`; None without
    any."""
    if not windows:
        return dict.fromkeys(MILLISECONDS)
    within = union(windows)

    def mean_ms(spans: Sequence[Span]) -> float:
        return length(intersect(spans, within)) / len(windows) / 1e3

    step_ms = length(within) / len(windows) / 1e3
    parts = {part: mean_ms(booked.parts[part]) for part in (*PARTS[:-1], *WAITS)}
    gap_ms = step_ms - sum(parts[part] for part in PARTS[:-1])
    return {
        "step_ms": step_ms,
        "launch_gap_ms": gap_ms,
        "comm_busy_ms": mean_ms(booked.busy),
        **{f"{part}_ms": ms for part, ms in parts.items()},
    }


def _step_lengths(steps: Iterable[StepRow]) -> dict[tuple[int, int, str], float]:
    """(rank, step, phase) -> ms from the end of the step before to its own; the first step's from
    the start of the run."""
    ends = {(one.rank, one.step): one for one in steps}
    out = {}
    for (rank, step), one in ends.items():
        before = ends.get((rank, step - 1))
        if before is not None or step == 0:
            began_s = before.end_s if before is not None else 0.0
            out[rank, step, one.phase] = 1e3 * (one.end_s - began_s)
    return out


# -- what calls took


def _timed_collectives(ranks: Iterable[Seen], placement: Placement) -> Iterator[TimedRow]:
    """GB/s of 1e9 bytes: bytes over transfer, and that x the bus factor."""
    groups: dict[tuple[int, str, str, str], list[Transfer]] = defaultdict(list)
    for one in ranks:
        kept = {step for steps in one.steps.values() for step in steps.counted}
        for call in one.calls:
            if call.step in kept:
                groups[one.rank, call.phase, call.op, call.axis].append(call)
    for (rank, phase, op, axis), calls in sorted(groups.items()):
        yield _timed(calls, rank, phase, axis, 2 if op in EDGES else placement.degree(axis))


def _timed(
    calls: Sequence[Transfer], rank: int, phase: str, axis: str, group_size: int
) -> TimedRow:
    """Of calls whose kernel also computes nobody knows what their data take."""
    op, sizes = calls[0].op, [call.bytes for call in calls if call.bytes is not None]
    moved = sum(sizes) if len(sizes) == len(calls) else None
    took = fmean(call.transfer for call in calls)
    waited = fmean(call.end - call.start - call.transfer for call in calls)
    plain = took > 0 and not any(call.fused for call in calls)
    algbw = moved / len(calls) / took / 1e3 if plain and moved is not None else None
    return TimedRow(
        rank=rank,
        phase=phase,
        op=op,
        axis=axis,
        calls=len(calls),
        bytes=moved,
        group_size=group_size,
        transfer_us=None if any(call.fused for call in calls) else took,
        wait_us=waited,
        algbw=algbw,
        busbw=algbw and algbw * bus_factor(op, group_size),
    )
