"""The step taken apart: from the spans of all ranks to compute, transfer, wait, bubble and gap.

Each stretch of a rank's time is booked once, by the first that fits:
compute        a kernel that is no communication runs (on a CPU: the host is in no collective);
transfer       data of a collective or a hand-over move, and nothing computes;
wait           a collective is there but waits for its last rank, and nothing computes;
bubble         a hand-over between pipeline stages waits for the other stage, nothing computes;
launch gap     nothing runs at all.

How calls are matched over ranks, and which part of one is transfer, is in `matching.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from orchestrator.analysis.observed.matching import EDGES, HANDOVER, Transfer, match
from orchestrator.store.schema import StartKey
from strategies.placement import Placement
from strategies.traffic import bus_factor
from workers.intervals import Span, intersect, length, subtract, union
from workers.records import COMPUTE, DECODE, SPANS, CollectiveRow, SpanRow
from workers.rows import Table, column, row

NCCL_TESTS = "nccl-tests, PERFORMANCE.md"
EXCERPT = 4  # steps of a phase
PARTS = ("compute", "exposed_transfer", "exposed_wait", "bubble", "launch_gap")

Step = TypeVar("Step")


@row
class PartsRow:
    """A step of one phase on one rank, taken apart: means over the steps of an observed run.

    The five parts sum to step_ms.
    """

    rank: int = column("rank of the placement", "1")
    phase: str = column("prefill or decode")
    steps: int = column("steps that count", "1")
    step_ms: float = column("from the end of the step before to its own", "ms")
    compute_ms: float = column("a kernel that is no communication runs", "ms")
    exposed_transfer_ms: float = column("data move, and nothing computes", "ms")
    exposed_wait_ms: float = column(
        "a collective waits for its last rank, and nothing computes", "ms"
    )
    bubble_ms: float = column("a hand-over waits for another stage, and nothing computes", "ms")
    launch_gap_ms: float = column("nothing runs", "ms")
    comm_busy_ms: float = column("communication, hidden or not", "ms")


@row
class CallTiming:
    """What the calls of one operation took in an observed run: means over the calls."""

    group_size: int | None = column("ranks of the group; 2 for a hand-over", "1")
    transfer_us: float | None = column("data of a call move", "us")
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


PARTS_OF_STEP = Table("parts", PartsRow)
TIMED = Table("timed_collectives", TimedRow)
CELL_PARTS = Table("parts", CellParts)
CELL_TIMED = Table("timed_collectives", CellTimed)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one rank did: its spans, its calls matched with those of the others, and the steps that
    count, by phase."""

    rank: int
    spans: Sequence[SpanRow]
    calls: Sequence[Transfer]
    steps: Mapping[str, Mapping[int, Span]]


def account(
    spans: pa.Table | None, placement: Placement, timed: pa.Table | None = None, whole: bool = False
) -> dict[str, pa.Table]:
    """The tables of an observed run, from the spans of all ranks.

    timed: table STEPS of all ranks, of the same work served unprofiled. An excerpt of the spans, or
    all of them if `whole`, `parts` (PARTS_OF_STEP) and `timed_collectives` (TIMED); empty where
    nothing was seen. Of each phase its `settled` steps count.
    """
    seen = SPANS.schema.empty_table() if spans is None else spans
    ranks = _by_rank(SPANS.rows(seen), placement)
    return {
        "spans": seen if whole else excerpt(seen, placement),
        "timed_collectives": TIMED.make(_timed_collectives(ranks, placement)),
        "parts": PARTS_OF_STEP.make(part for one in ranks for part in _parts(one)),
    }


def _by_rank(spans: Sequence[SpanRow], placement: Placement) -> list[Seen]:
    mine: dict[int, list[SpanRow]] = defaultdict(list)
    calls: dict[int, list[Transfer]] = defaultdict(list)
    for span in spans:
        mine[span.rank].append(span)
    for call in match(spans, placement):
        calls[call.rank].append(call)
    return [
        Seen(rank, mine[rank], calls[rank], counted_steps(mine[rank], placement))
        for rank in sorted(mine)
    ]


def excerpt(spans: pa.Table, placement: Placement) -> pa.Table:
    """The spans of the first steps of each phase that count: enough to look at, few to keep."""
    steps: dict[str, set[int]] = defaultdict(set)
    places = list(zip(*(spans.column(name).to_pylist() for name in ("phase", "step")), strict=True))
    for phase, step in places:
        steps[phase].add(step)
    kept = {
        (phase, step)
        for phase, found in steps.items()
        for step in settled(phase, sorted(found), placement)[:EXCERPT]
    }
    return spans.filter(pa.array([place in kept for place in places], type=pa.bool_()))


# -- the parts of a step


def _parts(seen: Seen) -> Iterator[PartsRow]:
    booked, busy = _book(seen.spans, seen.calls)
    for phase, windows in seen.steps.items():
        within, steps = union(windows.values()), len(windows)

        def per_step_ms(
            spans: Sequence[Span], within: list[Span] = within, n: int = steps
        ) -> float:
            return length(intersect(spans, within)) / n / 1e3

        step_ms = length(within) / steps / 1e3
        parts = {f"{part}_ms": per_step_ms(booked[part]) for part in PARTS[:-1]}
        yield PartsRow(
            rank=seen.rank,
            phase=phase,
            steps=steps,
            step_ms=step_ms,
            launch_gap_ms=step_ms - sum(parts.values()),
            comm_busy_ms=per_step_ms(busy),
            **parts,
        )


def _book(
    spans: Sequence[SpanRow], calls: Sequence[Transfer]
) -> tuple[dict[str, list[Span]], list[Span]]:
    """One rank's time by part, without overlaps, and the time in which it communicated, hidden or
    not."""
    compute = union((span.start_us, span.end_us) for span in spans if span.kind == COMPUTE)
    moving = union(call.moving for call in calls)
    waiting = union(call.waiting for call in calls if call.op not in HANDOVER)
    idle = union(call.waiting for call in calls if call.op in HANDOVER)
    booked = {"compute": compute, "exposed_transfer": subtract(moving, compute)}
    taken = union(compute + moving)
    booked["exposed_wait"] = subtract(waiting, taken)
    booked["bubble"] = subtract(idle, union(taken + waiting))
    return booked, union(moving + waiting)


def settled(phase: str, steps: Sequence[Step], placement: Placement) -> Sequence[Step]:
    """`steps` of a phase, in order, without the first ones; the last one alone where there are no
    others.

    The first step of prefill waits for ranks that began later. The first decode step of each
    micro-batch, of which there are as many as stages, waits until every other stage is done with
    prefill: that is of a phase's change, not of its steps.
    """
    return steps[placement.degree("pp") if phase == DECODE else 1 :] or steps[-1:]


def counted_steps(spans: Sequence[SpanRow], placement: Placement) -> dict[str, dict[int, Span]]:
    """phase -> step -> when it was, of the `settled` steps of one rank: from the end of the step
    before to its own."""
    return {
        phase: dict(settled(phase, list(found.items()), placement))
        for phase, found in _windows(spans).items()
    }


def _windows(spans: Sequence[SpanRow]) -> dict[str, dict[int, Span]]:
    """phase -> step -> when it was. What a rank sends goes on beside its next step, so it does not
    end one."""
    ends: dict[tuple[int, str], float] = {}
    starts: dict[tuple[int, str], float] = {}
    for span in spans:
        key = (span.step, span.phase)
        starts[key] = min(span.start_us, starts.get(key, span.start_us))
        if span.kind != "send":
            ends[key] = max(span.end_us, ends.get(key, span.end_us))
    out: dict[str, dict[int, Span]] = defaultdict(dict)
    before: float | None = None
    for step, phase in sorted(ends):
        begin = starts[step, phase] if before is None else before
        before = max(ends[step, phase], begin)
        out[phase][step] = (begin, before)
    return out


# -- what calls took


def _timed_collectives(ranks: Iterable[Seen], placement: Placement) -> Iterator[TimedRow]:
    """GB/s of 1e9 bytes: bytes over transfer, and that x the bus factor."""
    groups: dict[tuple[int, str, str, str], list[Transfer]] = defaultdict(list)
    for seen in ranks:
        kept = {step for windows in seen.steps.values() for step in windows}
        for call in seen.calls:
            if call.axis is not None and call.step in kept:
                groups[seen.rank, call.phase, call.op, call.axis].append(call)
    for (rank, phase, op, axis), calls in sorted(groups.items()):
        yield _timed(calls, rank, phase, axis, 2 if op in EDGES else placement.degree(axis))


def _timed(
    calls: Sequence[Transfer], rank: int, phase: str, axis: str, group_size: int
) -> TimedRow:
    op, sizes = calls[0].op, [call.bytes for call in calls if call.bytes is not None]
    moved = sum(sizes) if len(sizes) == len(calls) else None
    took = sum(call.transfer for call in calls)
    waited = sum(call.end - call.start for call in calls) - took
    algbw = moved / took / 1e3 if took and moved is not None else None
    return TimedRow(
        rank=rank,
        phase=phase,
        op=op,
        axis=axis,
        calls=len(calls),
        bytes=moved,
        group_size=group_size,
        transfer_us=took / len(calls),
        wait_us=waited / len(calls),
        algbw=algbw,
        busbw=algbw and algbw * bus_factor(op, group_size),
    )
