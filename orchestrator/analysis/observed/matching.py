"""Communication calls matched over the ranks that take part in them.

A call takes at least as long as its data need, and longer on the ranks that came early. So the
shortest of its durations over the ranks that took part in it is the transfer, at the end of it on
every rank; what it took longer is waiting. Calls are matched by their order within their group,
not by clocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from strategies.placement import Placement
from workers.intervals import Span
from workers.records import COMPUTE, SpanRow

EDGES = frozenset({"send", "recv"})  # between two stages
HANDOVER = EDGES | {"broadcast"}


@dataclass(frozen=True, slots=True)
class Transfer:
    """One communication call of one rank, and for how long of it (us) its data moved.

    phase: of the tokens that it carried.
    """

    rank: int
    phase: str
    step: int
    op: str
    axis: str | None
    bytes: int | None
    start: float
    end: float
    transfer: float

    @property
    def moving(self) -> Span:
        """When its data moved."""
        return self.end - self.transfer, self.end

    @property
    def waiting(self) -> Span:
        """When it waited for its last rank."""
        return self.start, self.end - self.transfer


def match(spans: Iterable[SpanRow], placement: Placement) -> list[Transfer]:
    """Every communication call among `spans`, matched with those of the other ranks."""
    calls = sorted((span for span in spans if span.kind != COMPUTE), key=lambda span: span.start_us)
    keys = _order_in_channel(calls, placement)
    shortest: dict[Hashable, float] = {}
    for key, call in zip(keys, calls, strict=True):
        took = call.end_us - call.start_us
        shortest[key] = min(took, shortest.get(key, took))
    return [_transfer(call, shortest[key]) for key, call in zip(keys, calls, strict=True)]


def _order_in_channel(calls: Sequence[SpanRow], placement: Placement) -> list[Hashable]:
    """Of each call, its channel and its place among its rank's calls there: equal for the
    counterparts on other ranks."""
    order: dict[Hashable, int] = defaultdict(int)
    keys: list[Hashable] = []
    for call in calls:
        channel = _channel(call, placement)
        keys.append((channel, order[call.rank, channel]))
        order[call.rank, channel] += 1
    return keys


def _channel(call: SpanRow, placement: Placement) -> Hashable:
    """What a call's counterparts on other ranks have in common with it: group and operation.

    A send and its receive are one.
    """
    rank, op = call.rank, call.kind
    if call.axis is None:
        return rank, op
    group = placement.group(call.axis, rank)
    if op == "send":
        return "hand-over", rank, group[group.index(rank) + 1]
    if op == "recv":
        return "hand-over", group[group.index(rank) - 1], rank
    return op, group


def _transfer(call: SpanRow, shortest: float) -> Transfer:
    return Transfer(
        rank=call.rank,
        phase=call.call_phase or call.phase,
        step=call.step,
        op=call.kind,
        axis=call.axis,
        bytes=call.bytes,
        start=call.start_us,
        end=call.end_us,
        transfer=shortest,
    )
