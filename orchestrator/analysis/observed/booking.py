"""Each rank's time booked by part, without overlaps.

The first that fits counts:
compute        a kernel that is no communication runs (on a CPU: the host is in no collective);
transfer       data of a collective or a hand-over move;
fused          a kernel runs that communicates and computes, and all of its ranks have come;
wait           a collective is there but waits for its last rank;
bubble         a hand-over between pipeline stages waits for the other stage.
What is left of a step is its launch gap. A wait is split by what the last rank did meanwhile. But
where that rank is late because it had to wait for a hand-over itself, the wait for it is a bubble
here too.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from orchestrator.analysis.observed.matching import HANDOVER, Transfer
from workers.intervals import Span, intersect, subtract, union
from workers.records import COMPUTE, SpanRow
from workers.rows import grouped

WAITS = ("wait_compute", "wait_launch", "wait_communication")  # what exposed_wait is made of
# What the last rank does while others wait for it -> what their wait is.
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
    return {
        rank: _with_causes(one, calls.get(rank, ()), alone, clocks) for rank, one in alone.items()
    }


def _book(spans: Sequence[SpanRow], calls: Sequence[Transfer]) -> Booked:
    computing = (span.when for span in spans if span.kind == COMPUTE)
    compute = union(span for span in computing if span)
    moving = union(call.moving for call in calls if not call.fused)
    fused = union(call.moving for call in calls if call.fused)
    waiting = union(call.waiting for call in calls if call.op not in HANDOVER)
    idle = union(call.waiting for call in calls if call.op in HANDOVER)
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
    clocks: Mapping[int, float],
) -> Booked:
    """`mine` with its wait split by what the last rank did meanwhile."""
    collectives = [call for call in calls if call.op not in HANDOVER]
    late_edges = union(_late_hand_overs(collectives, others))
    causes: dict[str, list[Span]] = {name: [] for name in WAITS}
    causes["bubble"] = intersect(mine.parts["exposed_wait"], late_edges)
    left = subtract(mine.parts["exposed_wait"], causes["bubble"])
    for last, late in sorted(grouped(collectives, lambda call: call.last).items()):
        waited = intersect(union(call.waiting for call in late), left)
        left = subtract(left, waited)
        if waited:
            ahead = clocks.get(last, 0.0) - clocks.get(late[0].rank, 0.0)
            for cause, spans in _causes(waited, others[last], ahead).items():
                causes[cause] += spans
    found = {cause: union(spans) for cause, spans in causes.items()}
    bubble = found.pop("bubble")
    parts = {
        **mine.parts,
        **found,
        "exposed_wait": subtract(mine.parts["exposed_wait"], bubble),
        "bubble": union([*mine.parts["bubble"], *bubble]),
    }
    return replace(mine, parts=parts)


def _late_hand_overs(calls: Iterable[Transfer], booked: Mapping[int, Booked]) -> Iterator[Span]:
    """The first stretch of each wait: as long as the last rank waited longer than this one for
    other stages, since both left the last call that they had together."""
    bubbles = {rank: Lengths(one.parts["bubble"]) for rank, one in booked.items()}
    for call in calls:
        if call.since and call.last_since:
            there, here = bubbles[call.last], bubbles[call.rank]
            longer = there.within(call.last_since) - here.within(call.since)
            begin, end = call.waiting
            yield begin, min(end, begin + max(0.0, longer))


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


def _causes(waited: Sequence[Span], last: Booked, ahead: float) -> dict[str, list[Span]]:
    """When the rank that was waited for did what. ahead: us by which its clock is before that of
    the rank that waits."""
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
