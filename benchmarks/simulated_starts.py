"""Experiments whose truth is known: what every run of every start delivers, and whether what is
said of it is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis.comparing.confidence import (
    Ratio,
    Spread,
    is_narrow,
    paired_ratio,
    ratio,
    spread,
)
from orchestrator.analysis.comparing.significance import Decision, Pair, decide
from orchestrator.analysis.summary import Conditions, Summary
from orchestrator.analysis.throughput import Throughput
from orchestrator.experiment import DIFFERENCE
from orchestrator.store.schema import COMPLETED, CellKey
from workers.rows import nothing

SLOWER = 0.03


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviations, as shares: of runs inside a start, of starts, of what a round shares.

    drift: by how much the machine becomes slower from a round to the next. slow: how many starts
    are slower by SLOWER for no reason.
    """

    within: float = 0.002
    between: float = 0.01
    shared: float = 0.0
    drift: float = 0.0
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class Design:
    """An experiment. truths: what each layout delivers in truth, in every cell."""

    noise: Noise
    starts: int
    truths: tuple[float, ...] = (1.0, 1.0)
    cells: int = 18
    runs: int = 3

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """float64 [cells, layouts, starts, runs]: the figure of each run."""
        noise, layouts = self.noise, len(self.truths)
        shape = (self.cells, layouts, self.starts)
        starts, names = np.arange(self.starts), np.arange(layouts)[:, None]
        when = starts + (names + starts) % layouts / layouts
        shared = 1.0 + noise.shared * random.standard_normal(self.starts)
        between = 1.0 + noise.between * random.standard_normal(shape)
        between -= SLOWER * ((random.random(shape) < noise.slow) - noise.slow)
        runs = 1.0 + noise.within * random.standard_normal((*shape, self.runs))
        truths = np.array(self.truths)[:, None]
        of_starts = truths * shared * (1.0 - noise.drift * when) * between
        return of_starts[..., None] * runs


# -- what is asked of what was drawn


def starts_of(drawn: np.ndarray) -> list[list[list[float]]]:
    """Cell by cell and layout by layout, the figure of each start: the mean over its runs."""
    return drawn.mean(axis=-1).tolist()


def judged(
    drawn: np.ndarray, design: Design
) -> tuple[list[Pair], list[Decision], list[tuple[float, float]]]:
    """Every pair of layouts in every cell as one family, what is shown of it, and its truths."""
    sides = list(itertools.combinations(range(len(design.truths)), 2))
    cells = starts_of(drawn)
    pairs = [Pair(cell[i], cell[j]) for cell in cells for i, j in sides]
    truths = [(design.truths[i], design.truths[j]) for _ in cells for i, j in sides]
    return pairs, decide(pairs, DIFFERENCE), truths


def is_wrong(pair: Pair, decision: Decision, truths: tuple[float, float]) -> bool:
    """Whether a pair is shown to be different and is equal, or the other way round. Where it is
    shown to be equivalent too, that counts all the same."""
    ahead = sum(pair.over) > sum(pair.under)
    right = truths[0] > truths[1] if ahead else truths[0] < truths[1]
    return decision.is_different and not right


def holds(found: Spread | Ratio | None, truth: float) -> bool:
    """Whether an interval holds the truth; one without ends holds everything."""
    if isinstance(found, Spread):
        return found.ci_low is None or found.ci_low <= truth <= (found.ci_high or math.inf)
    return found is not None and (found.low is None or found.low <= truth <= (found.high or 0.0))


HOLDS: dict[str, Callable[[Sequence[Sequence[float]]], bool]] = {
    "mean": lambda sides: holds(spread(sides[0]), 1.0),
    "paired_ratio": lambda sides: holds(paired_ratio(*sides), 1.0),
    "ratio": lambda sides: holds(ratio(*sides), 1.0),
    "ratio_uneven": lambda sides: holds(ratio(sides[0], _noisier(sides[1])), 1.0),
}


def _noisier(starts: Sequence[float]) -> list[float]:
    """Half of the starts, at three times the noise."""
    return [1.0 + 3.0 * (value - 1.0) for value in starts[: max(2, len(starts) // 2)]]


def stopped(sides: Sequence[Sequence[float]], until_ci: float) -> list[Sequence[float]]:
    """The starts of each layout of a load that are made until the intervals of all are narrow; all
    of them if they never are."""
    most = len(sides[0])
    narrow = (n for n in range(2, most) if all(is_narrow(side[:n], until_ci) for side in sides))
    enough = next(narrow, most)
    return [side[:enough] for side in sides]


def rows(drawn: np.ndarray) -> list[Summary]:
    """The same as the rows of an experiment's runs."""
    empty, made = nothing(Summary), nothing(Throughput)
    conditions = replace(nothing(Conditions), block=0)
    return [
        replace(
            empty,
            cell=_cell(cell, layout),
            start=start,
            run=run,
            status=COMPLETED,
            conditions=conditions,
            throughput=replace(made, output_throughput=value),
        )
        for (cell, layout, start, run), value in np.ndenumerate(drawn)
    ]


def _cell(cell: int, layout: int) -> CellKey:
    names = {"experiment": "e", "model": "m", "engine": "torch", "dtype": "bfloat16"}
    return CellKey(
        **names,
        strategy=f"l{layout}",
        quantization="none",
        ablation="none",
        scenario="short",
        max_concurrency=cell + 1,
    )
