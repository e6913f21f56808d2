"""A few steps rank by rank: bars that fit on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.analysis.comparing.rounds import load_of
from orchestrator.report.charts.views import Names, View, first_start, view
from orchestrator.store.schema import CellKey
from workers.records import COMPUTE, DECODE, SPANS, SpanRow
from workers.rows import grouped, widened

MAX_BARS = 8000  # over the layouts of one view
MAX_STEPS = 3
# A gap between two stretches of compute cannot be seen if it is a smaller part of the window than
# this.
SEEN = 1 / 2000


class Bar(NamedTuple):
    """A stretch of one kind on one rank, in us on the clock of the spans."""

    rank: int
    step: int
    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Window:
    """The bars of a few steps.

    bars: [rank, step, kind, start, length] each, in us from the first of them; kind indexes
    `kinds`. cut: not the whole of a step fits.
    """

    kinds: list[str]
    bars: list[list[float]]
    cut: bool


@dataclass(frozen=True)
class Timeline(Window, View):
    """The last decode steps of a cell."""


def timeline(spans: pa.Table | None, names: Names) -> list[Timeline]:
    """A row for each observed cell, of its first start. spans: the kept table."""
    if spans is None:
        return []
    chosen = {cell: places for cell, places in first_start(spans).items() if cell in names}
    is_decode = np.asarray(spans.column("phase")) == DECODE
    steps = np.asarray(spans.column("step"))

    def recent(places: np.ndarray) -> np.ndarray:
        """Those of all steps that may be drawn: most of a table is not, and rows are slow."""
        kept = places[is_decode[places]] if is_decode[places].any() else places
        return kept[np.isin(steps[kept], np.unique(steps[kept])[-MAX_STEPS:])]

    def drawn(cells: Sequence[CellKey]) -> Iterator[Timeline]:
        """Those of one load, with as many steps of each."""
        found = {cell: SPANS.rows(spans.take(recent(chosen[cell]))) for cell in cells}
        budget = MAX_BARS // len(cells)
        count = min(steps_within(mine, budget) for mine in found.values())
        for cell, mine in found.items():
            yield widened(Timeline, view(cell, names), **vars(window(mine, budget, count)))

    return [row for cells in grouped(chosen, load_of).values() for row in drawn(cells)]


def steps_within(spans: Sequence[SpanRow], budget: int) -> int:
    """How many of the last steps of a cell have no more bars than `budget`: from 1, which may have
    more, to MAX_STEPS."""
    counts = range(MAX_STEPS, 1, -1)
    return next((count for count in counts if len(_last(spans, count)) <= budget), 1)


def window(spans: Sequence[SpanRow], budget: int, count: int) -> Window:
    """The bars of the last `count` steps of one cell; of a shorter time where they are more than
    `budget`."""
    bars = sorted(_last(spans, count), key=lambda bar: bar.start)
    cut = len(bars) > budget
    return _drawn([bar for bar in bars if not cut or bar.start < bars[budget].start], cut)


def _last(spans: Sequence[SpanRow], count: int) -> list[Bar]:
    """The bars of the last steps, of decode where there are any."""
    decode = [span for span in spans if span.phase == DECODE] or spans
    steps = sorted({span.step for span in decode})
    return merged([span for span in decode if span.step in steps[-count:]])


def _drawn(bars: Sequence[Bar], cut: bool) -> Window:
    origin = bars[0].start if bars else 0.0
    kinds = sorted({bar.kind for bar in bars})
    short = [
        [
            bar.rank,
            bar.step,
            kinds.index(bar.kind),
            round(bar.start - origin, 1),
            round(bar.end - bar.start, 1),
        ]
        for bar in bars
    ]
    return Window(kinds, short, cut)


def merged(spans: Sequence[SpanRow]) -> list[Bar]:
    """The bars of `spans`, in which stretches of compute with no visible gap between them are one.

    A call that was not seen has no bar.
    """
    found = (Bar(one.rank, one.step, one.kind, *one.when) for one in spans if one.when)
    bars = sorted(found, key=lambda bar: (bar.rank, bar.start))
    if not bars:
        return []
    unseen = SEEN * (max(bar.end for bar in bars) - min(bar.start for bar in bars))
    out: list[Bar] = []
    for bar in bars:
        if out and _continues(out[-1], bar, unseen):
            out[-1] = out[-1]._replace(end=max(out[-1].end, bar.end))
        else:
            out.append(bar)
    return out


def _continues(before: Bar, bar: Bar, unseen: float) -> bool:
    same = before[:3] == bar[:3] and bar.kind == COMPUTE
    return same and bar.start - before.end <= unseen
