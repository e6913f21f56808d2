"""Each rank's time booked by part, without overlaps.

The first that fits counts:
compute        a kernel that is no communication runs (on a CPU: the host is in no collective);
transfer       data of a collective or a hand-over move;
fused          a kernel runs that communicates and computes, and all of its ranks have come;
wait           a collective is there but waits for its last rank;
bubble         a hand-over between pipeline stages waits for the other stage, or the host does so
               before it launches one.
What is left of a step is its launch gap. A wait is split by cause: what the last rank spent longer
on than this one since the last call that they had together. Where it is late because it waited for
a hand-over itself, the wait for it is a bubble here too.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from orchestrator.analysis.observed.matching import HANDOVER, Transfer
from workers.intervals import Span, intersect, subtract, union
from workers.records import COMPUTE, STALL, SpanRow

WAITS = ("wait_compute", "wait_launch", "wait_communication")  # what exposed_wait is made of
# What the last rank spends its time on -> what the wait for it is.
CAUSES = {
    "compute": "wait_compute",
    "exposed_transfer": "wait_communication",
    "fused": "wait_communication",
    "exposed_wait": "wait_communication",
    "bubble": "bubble",
}


@dataclass(frozen=True, slots=True)
class Booked:
    """One rank's time in us of its own clock.

    parts: when it was in each part of a step but the launch gap and, once the other ranks have been
    asked, in each of WAITS. busy: when it communicated, hidden or not.
    """

    parts: Mapping[str, Sequence[Span]]
    busy: Sequence[Span]


def book(
    spans: Mapping[int, Sequence[SpanRow]],
    calls: Mapping[int, Sequence[Transfer]],
    clocks: Mapping[int, float],
) -> dict[int, Booked]:
    """Rank -> its time by part. spans, calls: of each rank. clocks: us by which each is ahead."""
    alone = {rank: _book(mine, calls.get(rank, ())) for rank, mine in spans.items()}
    spent = {rank: Spent.of(one) for rank, one in alone.items()}
    return {
        rank: _with_causes(one, calls.get(rank, ()), alone, spent, clocks)
        for rank, one in alone.items()
    }


def _book(spans: Sequence[SpanRow], calls: Sequence[Transfer]) -> Booked:
    computing = (span.when for span in spans if span.kind == COMPUTE)
    compute = union(span for span in computing if span)
    moving = union(call.moving for call in calls if not call.fused)
    fused = union(call.moving for call in calls if call.fused)
    waiting = union(call.waiting for call in calls if call.op not in HANDOVER)
    stalls = [span.when for span in spans if span.kind == STALL and span.when]
    idle = union([*stalls, *(call.waiting for call in calls if call.op in HANDOVER)])
    in_order = {
        "compute": compute,
        "exposed_transfer": moving,
        "fused": fused,
        "exposed_wait": waiting,
        "bubble": idle,
    }
    taken: list[Span] = []
    parts: dict[str, Sequence[Span]] = {}
    for part, spans_of_it in in_order.items():
        parts[part] = subtract(spans_of_it, taken)
        taken = union([*taken, *spans_of_it])
    return Booked(parts, union([*moving, *fused, *waiting]))


def _with_causes(
    mine: Booked,
    calls: Sequence[Transfer],
    others: Mapping[int, Booked],
    spent: Mapping[int, Spent],
    clocks: Mapping[int, float],
) -> Booked:
    """`mine` with its wait split by what the last rank spent longer on. others, spent: of every
    rank."""
    causes: dict[str, list[Span]] = {name: [] for name in (*WAITS, "bubble")}
    for call in calls:
        if call.op in HANDOVER or call.waiting[1] <= call.waiting[0]:
            continue
        if call.since and call.last_since:
            found = _by_excess(call, spent)
        else:
            ahead = clocks.get(call.last, 0.0) - clocks.get(call.rank, 0.0)
            found = _meanwhile([call.waiting], others[call.last], ahead)
        for cause, spans in found.items():
            causes[cause] += spans
    left, parts = mine.parts["exposed_wait"], dict(mine.parts)
    for cause, spans in causes.items():
        parts[cause] = intersect(left, union(spans))
        left = subtract(left, parts[cause])
    bubble = intersect(mine.parts["exposed_wait"], union(causes["bubble"]))
    parts["exposed_wait"] = subtract(mine.parts["exposed_wait"], bubble)
    parts["bubble"] = union([*mine.parts["bubble"], *bubble])
    return replace(mine, parts=parts)


def _by_excess(call: Transfer, spent: Mapping[int, Spent]) -> dict[str, list[Span]]:
    """The wait for a call, cut by how much longer the last rank took for each cause since both left
    the last call that they had together.

    What is left is communication: other calls, or this one, which then ended later here. What the
    last rank does during the wait says little: where its host was late it computes then.
    """
    assert call.since is not None
    assert call.last_since is not None
    found: dict[str, list[Span]] = {}
    begin, end = call.waiting
    for cause in ("bubble", "wait_launch", "wait_compute"):
        there = spent[call.last].on(cause, call.last_since)
        longer = max(0.0, there - spent[call.rank].on(cause, call.since))
        found[cause] = [(begin, min(end, begin + longer))]
        begin = found[cause][0][1]
    return found | {"wait_communication": [(begin, end)]}


@dataclass(frozen=True, slots=True)
class Spent:
    """How long one rank spent on each cause of a wait, in any stretch of its own time."""

    causes: Mapping[str, Lengths]
    all: Lengths

    @classmethod
    def of(cls, booked: Booked) -> Spent:
        """parts of `booked` are alone: not yet split by cause."""
        spans: dict[str, list[Span]] = {}
        for part, cause in CAUSES.items():
            spans.setdefault(cause, []).extend(booked.parts[part])
        whole = union(span for of_it in spans.values() for span in of_it)
        return cls({cause: Lengths(union(of_it)) for cause, of_it in spans.items()}, Lengths(whole))

    def on(self, cause: str, stretch: Span) -> float:
        """Microseconds of `stretch`; of "wait_launch" what is in no part."""
        if cause == "wait_launch":
            return stretch[1] - stretch[0] - self.all.within(stretch)
        return self.causes[cause].within(stretch)


class Lengths:
    """How much of any stretch of time lies in given spans, which are in order and do not
    overlap."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        self._starts = [start for start, _ in spans]
        self._before = [0.0, *accumulate(end - start for start, end in spans)]

    def within(self, stretch: Span) -> float:
        """The length of `stretch` inside the spans."""
        return self._until(stretch[1]) - self._until(stretch[0])

    def _until(self, time: float) -> float:
        i = bisect.bisect_right(self._starts, time)
        return self._before[i] - (max(0.0, self._spans[i - 1][1] - time) if i else 0.0)


def _meanwhile(waited: Sequence[Span], last: Booked, ahead: float) -> dict[str, list[Span]]:
    """What the rank that was waited for did meanwhile: all that is known where there was no call
    before. ahead: us by which its clock is before that of the rank that waits."""
    causes: dict[str, list[Span]] = {"wait_launch": []}
    there = _shifted(waited, ahead)
    for part, cause in CAUSES.items():
        then = intersect(there, last.parts[part])
        there = subtract(there, then)
        causes.setdefault(cause, []).extend(_shifted(then, -ahead))
    causes["wait_launch"] += _shifted(there, -ahead)
    return causes


def _shifted(spans: Sequence[Span], by: float) -> list[Span]:
    return [(start + by, end + by) for start, end in spans]
