"""The same stretch of time under every layout, rank by rank: bars that fit on a page."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.analysis.comparing.rounds import load_of
from orchestrator.report.charts.views import Names, View, first_start, view
from orchestrator.store.schema import CellKey
from workers.records import COMPUTE, DECODE
from workers.rows import grouped, widened

K = TypeVar("K", bound=Hashable)
COLUMNS = ("rank", "phase", "step", "kind", "start_us", "end_us")  # of spans, as a bar has them
MAX_BARS = 8000  # over the layouts of one view
STEPS = 3  # of each rank, where as many are kept and fit
# A gap between two stretches of compute cannot be seen if it is a smaller part of the window than
# this.
SEEN = 1 / 4000


class Bar(NamedTuple):
    """A stretch of one kind on one rank, in us on the clock of the spans."""

    rank: int
    phase: str
    step: int
    kind: str
    start: float
    end: float


class Step(NamedTuple):
    """What a rank did in one step: from its first span to the end of its last one, in us."""

    rank: int
    step: int
    start: float
    end: float


class Known(NamedTuple):
    """A stretch in which all that a rank did is known, in us on the same clock."""

    rank: int
    start: float
    end: float


@dataclass(frozen=True)
class Window:
    """What each rank did in a stretch of time.

    length: of the stretch, in us. bars: [rank, step, kind, start, length] each, in us from its
    beginning; kind indexes `kinds`, and a bar that began before starts below 0. recorded: [rank,
    from, to] each, between which all that the rank did is known.
    """

    length: float
    kinds: list[str]
    bars: list[list[float]]
    recorded: list[list[float]]


@dataclass(frozen=True)
class Timeline(Window, View):
    """That of a cell."""


def timeline(spans: pa.Table | None, names: Names) -> list[Timeline]:
    """A row for each observed cell, of its first start. spans: the kept table."""
    if spans is None:
        return []
    chosen = {cell: places for cell, places in first_start(spans).items() if cell in names}

    def drawn(cells: Sequence[CellKey]) -> Iterator[Timeline]:
        """Those of one load, each as long as the others."""
        seen = {cell: spans_of(spans.select(COLUMNS).take(chosen[cell])) for cell in cells}
        known = {cell: mine for cell, mine in seen.items() if mine.num_rows}
        for cell, one in windows(known).items() if known else ():
            yield widened(Timeline, view(cell, names), **vars(one))

    return [row for cells in grouped(chosen, load_of).values() for row in drawn(cells)]


def spans_of(spans: pa.Table) -> pa.Table:
    """Those that have times, rank by rank in their order. They stay a table: as rows, hundreds of
    thousands would take seconds."""
    known = spans.select(COLUMNS).drop_null()
    return known.take(np.lexsort((known["start_us"].to_numpy(), known["rank"].to_numpy())))


def bars_of(spans: pa.Table, unseen: float) -> list[Bar]:
    """A bar for each of them, rank by rank in their order, and one for those stretches of compute
    between which there is no gap of more than `unseen` us."""
    firsts, ends = list[tuple[Any, ...]](), list[float]()
    for one in zip(*(column.to_pylist() for column in spans), strict=True):
        (*_, kind, start, end) = one
        near = firsts and kind == COMPUTE and start - ends[-1] <= unseen
        if near and firsts[-1][:4] == one[:4]:
            ends[-1] = max(ends[-1], end)
        else:
            firsts.append(one)
            ends.append(end)
    return [Bar._make((*one[:-1], end)) for one, end in zip(firsts, ends, strict=True)]


def steps_of(spans: pa.Table) -> list[Step]:
    """The steps of each rank, in their order."""
    by = [("rank", "ascending"), ("step", "ascending")]
    found = spans.group_by(["rank", "step"]).aggregate([("start_us", "min"), ("end_us", "max")])
    return [Step(*one) for one in zip(*(one.to_pylist() for one in found.sort_by(by)), strict=True)]


def windows(seen: Mapping[K, pa.Table]) -> dict[K, Window]:
    """The windows of several layouts, all as long: the last STEPS decode steps of every rank fit,
    unless these have more than MAX_BARS bars. seen: what `spans_of` knows of each, which is not
    nothing."""
    decode = {key: steps_of(_decode(spans) or spans) for key, spans in seen.items()}
    length = max(_last_steps(mine) for steps in decode.values() for mine in by_rank(steps).values())
    ends = {key: _end(recorded(steps), length) for key, steps in decode.items()}

    def drawn(key: K) -> list[Bar]:
        spans, end = seen[key], ends[key]
        begun = pc.less(spans["start_us"], end)
        inside = spans.filter(pc.and_(begun, pc.greater(spans["end_us"], end - length)))
        return bars_of(inside, SEEN * length)

    bars = {key: drawn(key) for key in seen}
    ages = sorted(ends[key] - bar.end for key, mine in bars.items() for bar in mine)
    shown = length if len(ages) <= MAX_BARS else ages[MAX_BARS]
    known = {key: recorded(steps_of(spans)) for key, spans in seen.items()}
    return {key: _window(bars[key], known[key], ends[key] - shown, shown) for key in seen}


def _decode(spans: pa.Table) -> pa.Table | None:
    """Those of decode steps; None where there are none."""
    found = spans.filter(pc.equal(spans["phase"], DECODE))
    return found if found.num_rows else None


def by_rank(steps: Iterable[Step]) -> dict[int, list[Step]]:
    """The steps of each rank."""
    return grouped(steps, lambda step: step.rank)


def _last_steps(steps: Sequence[Step]) -> float:
    """How long the last STEPS steps of one rank took, in us."""
    return max(step.end for step in steps) - steps[-STEPS:][0].start


def recorded(steps: Iterable[Step]) -> list[Known]:
    """The stretches of which all is known: those of steps without one that is left out between."""
    out: list[Known] = []
    for rank, mine in by_rank(steps).items():
        there = {one.step for one in mine}
        for one in mine:
            start = out.pop().start if one.step - 1 in there else one.start
            out.append(Known(rank, start, one.end))
    return out


def _end(known: Sequence[Known], length: float) -> float:
    """Where a window of `length` ends in which most is recorded, all ranks together; the first of
    those that are as good."""

    def inside(end: float) -> float:
        return sum(max(0.0, min(one.end, end) - max(one.start, end - length)) for one in known)

    return max(sorted(one.end for one in known), key=inside)


def _window(bars: Sequence[Bar], known: Sequence[Known], origin: float, length: float) -> Window:
    end = origin + length
    kinds = sorted({bar.kind for bar in bars})

    def since(at: float) -> float:
        return round(at - origin, 1)

    return Window(
        round(length, 1),
        kinds,
        [
            [
                bar.rank,
                bar.step,
                kinds.index(bar.kind),
                since(bar.start),
                round(bar.end - bar.start, 1),
            ]
            for bar in bars
            if bar.end > origin
        ],
        [
            [one.rank, since(max(origin, one.start)), since(min(end, one.end))]
            for one in known
            if one.end > origin and one.start < end
        ],
    )
