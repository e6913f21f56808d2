"""The layouts of one load and one metric: which has the best mean, and the pairs of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.comparing.confidence import Ratio, paired_ratio, ratio
from orchestrator.analysis.comparing.metrics import Metric
from orchestrator.analysis.comparing.rounds import Load, Round, names_of
from orchestrator.analysis.comparing.significance import Pair
from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import CellKey
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class Side:
    """One layout: its cell, what it is called among the others, and its figure of each start."""

    cell: CellKey
    name: str
    num_gpus: int | None
    starts: Mapping[Round, float]

    def with_(self, other: Side) -> Pair:
        """Both figures of every round that both have."""
        shared = [at for at in self.starts if at in other.starts]
        return Pair([self.starts[at] for at in shared], [other.starts[at] for at in shared])

    def over(self, other: Side) -> float:
        """The mean over that of `other`: over the rounds that both have, or where there are none,
        of all starts of each. Infinite where only `other` is 0, 1 where both are."""
        pair = self.with_(other)
        sides = pair if pair.over else (self.starts.values(), other.starts.values())
        mine, theirs = map(statistics.fmean, sides)
        return _quotient(mine, theirs)


@dataclass(frozen=True, slots=True)
class Contest:
    """Two layouts under one load by one metric; `better` has the better mean of the two."""

    load: Load
    metric: Metric
    better: Side
    other: Side

    @property
    def pair(self) -> Pair:
        """Their figures of the rounds that both have."""
        return self.better.with_(self.other)

    @property
    def ratio(self) -> Ratio | None:
        """`better` over `other`, with an interval from two rounds on; None where one is 0."""
        pair = self.pair
        if pair.over:
            return paired_ratio(*pair)
        apart = ratio(list(self.better.starts.values()), list(self.other.starts.values()))
        return apart and Ratio(apart.value)


@dataclass(frozen=True, slots=True)
class Field:
    """The layouts of one load that have a figure for a metric.

    order: the one with the best mean first, the others by how near they come to it. without: names
    of completed layouts that have no figure.
    """

    load: Load
    metric: Metric
    order: Sequence[Side]
    without: Sequence[str]

    def gain(self, side: Side, other: Side) -> float:
        """Above 1 where `side` is the better of the two."""
        over = side.over(other)
        return _quotient(1.0, over) if self.metric.lower_is_better else over

    @property
    def is_led(self) -> bool:
        """Whether nobody is better than the first, in the rounds that both have. Where rounds are
        missing each may be beaten by another."""
        first = self.order[0]
        return all(self.gain(side, first) <= 1.0 for side in self.order[1:])

    def contests(self) -> Iterator[Contest]:
        """Every pair; those with the first come first."""
        for side, other in itertools.combinations(self.order, 2):
            swapped = self.gain(other, side) > 1.0
            yield Contest(self.load, self.metric, *((other, side) if swapped else (side, other)))


def field_of(load: Load, runs: Sequence[Any], metric: Metric) -> Field:
    """runs: the completed ones of `load`. Goodput under different service levels is no figure."""
    cells = grouped(runs, lambda run: run.cell)
    sides = [
        Side(cell, name, mine[0].conditions.num_gpus, metric.starts(mine))
        for name, (cell, mine) in zip(names_of(list(cells)), cells.items(), strict=True)
    ]
    known = [side for side in sides if side.starts]
    if metric.objective == "goodput" and _levels(runs) > 1:
        known = []
    without = [side.name for side in sides if side not in known]
    return _ordered(Field(load, metric, known, without))


def _levels(runs: Sequence[Summary]) -> int:
    return len({run.goodput.goodput for run in runs if run.goodput.goodput})


def _ordered(found: Field) -> Field:
    """The same with its sides in order. From the best mean of all its starts on, whoever beats the
    first in the rounds that both have takes its place, until nobody does or all were there."""
    if not found.order:
        return found
    sign = 1 if found.metric.lower_is_better else -1
    sides = sorted(found.order, key=lambda side: sign * statistics.fmean(side.starts.values()))
    first, before = sides[0], set()
    while first.name not in before:
        before.add(first.name)
        ahead = max(sides, key=lambda side: found.gain(side, first))
        first = ahead if found.gain(ahead, first) > 1.0 else first
    rest = [side for side in sides if side is not first]
    rest.sort(key=lambda side: -found.gain(side, first))
    return Field(found.load, found.metric, [first, *rest], found.without)


def _quotient(over: float, under: float) -> float:
    if under:
        return over / under
    return math.inf if over else 1.0
