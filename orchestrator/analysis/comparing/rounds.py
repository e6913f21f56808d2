"""The unit of repetition: a start, which is a fresh group of workers. Those of one round are
pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from orchestrator.analysis.summary import Measured
from workers.rows import grouped

R = TypeVar("R", bound=Measured)


class Round(NamedTuple):
    """In a round every layout has one start. Two starts of a layout are never of one round: what a
    later command adds is of another block."""

    block: int
    start: int


def round_of(run: Measured) -> Round:
    """The round that a run was made in."""
    return Round(run.conditions.block, run.start)


def by_round(runs: Iterable[R]) -> dict[Round, list[R]]:
    """The runs of each start of one cell."""
    return grouped(runs, round_of)


def means(runs: Iterable[R], value: Callable[[R], float | None]) -> dict[Round, float]:
    """A figure of each start of one cell: the mean over its runs that know it. A start of which no
    run knows it is left out."""
    known = {at: _known(mine, value) for at, mine in by_round(runs).items()}
    return {at: statistics.fmean(values) for at, values in known.items() if values}


def _known(runs: Sequence[R], value: Callable[[R], float | None]) -> list[float]:
    found = map(value, runs)
    return [one for one in found if one is not None]
