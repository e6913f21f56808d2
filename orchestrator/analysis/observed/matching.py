"""Communication calls matched over the ranks that take part in them.

A call takes at least as long as its data need, and longer on the ranks that came early. So the
shortest of its durations over the ranks that took part in it is the transfer, at the end of it on
every rank; what it took longer is waiting. Calls are matched by their order within their group and
the step whose tokens they carry, not by clocks: a call that is missing leaves the calls of other
steps where they are. Where the ranks of a group do not agree in what they called in a step, nothing
can be said of that step.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from strategies.placement import Placement
from workers.intervals import Span
from workers.records import COMPUTE, STALL, SpanRow
from workers.rows import grouped

EDGES = frozenset({"send", "recv"})  # between two stages
HANDOVER = EDGES | {"broadcast"}


class Channel(NamedTuple):
    """What the counterparts of a call have in common: operation, mesh axis and the ranks that take
    part. A send and its receive are one."""

    op: str
    axis: str
    ranks: tuple[int, ...]

    @property
    def said(self) -> str:
        """What is called, in words."""
        return f"{self.op} over {self.axis}"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One communication call of one rank, and for how long of it (us) its data moved.

    phase: of the tokens that it carried. fused: its kernel also computes, which is a part of
    `transfer`. since: from the end of the last call that the same ranks had together to this one;
    None for a hand-over and where there is none. last: the rank that came last, and `last_since`
    the same on its own clock.
    """

    rank: int
    phase: str
    step: int
    op: str
    axis: str
    bytes: int | None
    fused: bool
    start: float
    end: float
    transfer: float
    since: Span | None
    last: int
    last_since: Span | None

    @property
    def moving(self) -> Span:
        """When its data moved."""
        return self.end - self.transfer, self.end

    @property
    def waiting(self) -> Span:
        """When it waited for its last rank."""
        return self.start, self.end - self.transfer


class Place(NamedTuple):
    """A step of a rank."""

    rank: int
    step: int


@dataclass(frozen=True, slots=True)
class Matched:
    """The calls of all ranks. unmatched: why nothing can be said of a step of a rank. clocks: us
    by which each rank's clock is ahead."""

    calls: Sequence[Transfer]
    unmatched: Mapping[Place, str]
    clocks: Mapping[int, float]


def match(spans: Iterable[SpanRow], placement: Placement) -> Matched:
    """Every communication call among `spans`, matched with those of the other ranks.

    Each call belongs to one channel and one step whose tokens it carries; of these, the k-th call
    of a rank is the k-th of the others.
    """
    called = [span for span in spans if span.kind not in (COMPUTE, STALL)]
    unmatched: dict[Place, str] = {}
    matched: list[tuple[SpanRow, ...]] = []
    for (channel, carried), calls in grouped(
        (span for span in called if span.axis is not None), lambda span: _key(span, placement)
    ).items():
        reason = _disagreement(channel, calls)
        if reason:
            unmatched |= dict.fromkeys(_places(channel, carried, calls), reason)
        else:
            matched += _counterparts(calls)
    # What a kernel without a call belongs to is not known, nor what else of its step is its.
    for one in called:
        if one.axis is None:
            reason = f"a kernel of {one.kind} ran that fits none of the calls"
            unmatched.setdefault(Place(one.rank, one.step), reason)
    unmatched |= dict(_spread(matched, unmatched))
    matched.sort(key=lambda calls: _times(calls[0]))
    return Matched(list(_transfers(matched)), unmatched, clocks(matched))


def _spread(
    matched: Iterable[Sequence[SpanRow]], unmatched: Mapping[Place, str]
) -> Iterator[tuple[Place, str]]:
    """The steps that take part in a collective with a rank of whose step nothing can be said: what
    it did while they waited is not known."""
    for calls in matched:
        places = [Place(call.rank, call.step) for call in calls]
        reason = next((unmatched[place] for place in places if place in unmatched), None)
        if reason and calls[0].kind not in HANDOVER:
            yield from ((place, reason) for place in places if place not in unmatched)


def _key(call: SpanRow, placement: Placement) -> tuple[Channel, int]:
    """The channel of a call, and the step whose tokens it carries."""
    carried = call.step if call.call_step is None else call.call_step
    return _channel(call, placement), carried


def _channel(call: SpanRow, placement: Placement) -> Channel:
    rank, op, axis = call.rank, call.kind, call.axis or ""
    group = placement.group(axis, rank)
    at = group.index(rank)
    if op == "send":
        return Channel("hand-over", axis, group[at : at + 2])
    if op == "recv":
        return Channel("hand-over", axis, group[at - 1 : at + 1])
    return Channel(op, axis, group)


def _disagreement(channel: Channel, calls: Sequence[SpanRow]) -> str | None:
    """Why these calls of one channel and step cannot be matched; None where they can."""
    unseen = sum(call.when is None for call in calls)
    if unseen:
        return f"{unseen} calls of {channel.said} were made and not seen"
    counts = Counter(call.rank for call in calls)
    most, least = (pick(channel.ranks, key=lambda rank: counts[rank]) for pick in (max, min))
    if counts[most] != counts[least]:
        return (
            f"ranks do not agree: {counts[most]} calls of {channel.said} on rank {most}, "
            f"{counts[least]} on rank {least}"
        )
    return None


def _places(channel: Channel, carried: int, calls: Sequence[SpanRow]) -> set[Place]:
    """The steps in which these calls were made, on every rank of the channel; of a rank without
    any, the one whose tokens they carry."""
    places = {Place(call.rank, call.step) for call in calls}
    silent = set(channel.ranks) - {place.rank for place in places}
    return places | {Place(rank, carried) for rank in silent}


def _counterparts(calls: Sequence[SpanRow]) -> list[tuple[SpanRow, ...]]:
    """The first calls of all ranks together, then the second ones ..."""
    by_rank = grouped(sorted(calls, key=_times), lambda call: call.rank)
    return list(zip(*by_rank.values(), strict=True))


def _times(span: SpanRow) -> Span:
    assert span.when is not None
    return span.when


def _took(span: SpanRow) -> float:
    start, end = _times(span)
    return end - start


def _transfers(matched: Iterable[Sequence[SpanRow]]) -> Iterator[Transfer]:
    """Each call on every rank that took part in it, in order."""
    together: dict[tuple[int, ...], dict[int, float]] = {}
    for calls in matched:
        since: dict[int, Span] = {}
        if calls[0].kind not in HANDOVER:
            ranks = tuple(sorted(call.rank for call in calls))
            ended = together.get(ranks, {})
            since = {c.rank: (ended[c.rank], _times(c)[0]) for c in calls if c.rank in ended}
            together[ranks] = {call.rank: _times(call)[1] for call in calls}
        yield from _of_one(calls, since)


def _of_one(calls: Sequence[SpanRow], since: Mapping[int, Span]) -> Iterator[Transfer]:
    last = min(calls, key=_took)
    for call in calls:
        start, end = _times(call)
        yield Transfer(
            rank=call.rank,
            phase=call.call_phase or call.phase,
            step=call.step,
            op=call.kind,
            axis=call.axis or "",
            bytes=call.bytes,
            fused=bool(call.fused),
            start=start,
            end=end,
            transfer=_took(last),
            since=since.get(call.rank),
            last=last.rank,
            last_since=since.get(last.rank),
        )


def clocks(matched: Iterable[Sequence[SpanRow]]) -> dict[int, float]:
    """Microseconds by which the clock of each rank is ahead of that of the lowest rank it is tied
    to.

    Ranks are tied by calls that none can leave before all have come: these end together, up to the
    noise that the median takes away. A hand-over is not one of them.
    """
    apart: dict[tuple[int, int], list[float]] = defaultdict(list)
    for first, *others in matched:
        if first.kind not in HANDOVER:
            for other in others:
                ahead = _times(other)[1] - _times(first)[1]
                apart[first.rank, other.rank].append(ahead)
                apart[other.rank, first.rank].append(-ahead)
    ties: dict[int, dict[int, float]] = defaultdict(dict)
    for (rank, counterpart), found in apart.items():
        ties[rank][counterpart] = median(found)
    ahead_of: dict[int, float] = {}
    for root in sorted(ties):
        if root not in ahead_of:
            _follow(ties, root, ahead_of)
    return ahead_of


def _follow(ties: Mapping[int, Mapping[int, float]], root: int, ahead_of: dict[int, float]) -> None:
    """Enter every rank that is tied to `root`, over others or not."""
    ahead_of[root] = 0.0
    waiting = deque([root])
    while waiting:
        rank = waiting.popleft()
        for other, ahead in ties[rank].items():
            if other not in ahead_of:
                ahead_of[other] = ahead_of[rank] + ahead
                waiting.append(other)
