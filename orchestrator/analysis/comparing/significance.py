"""What a family of pairs shows: tests of *different* and *equivalent*, corrected for their number,
and how many starts would show it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.analysis.comparing.confidence import LEVEL, covariance, student_t

ALPHA = 1.0 - LEVEL
POWER = 0.8
MOST_STARTS = 100_000  # nobody makes as many; what would take more is not counted
DIFFERENT, EQUIVALENT, NOT_SHOWN = "different", "equivalent", "not shown"


class Pair(NamedTuple):
    """Two layouts: value i of both is of the same round."""

    over: Sequence[float]
    under: Sequence[float]

    @property
    def is_testable(self) -> bool:
        """Whether there are two rounds, and anything but zeros in them."""
        return len(self.over) > 1 and any((*self.over, *self.under))


@dataclass(frozen=True, slots=True)
class Decision:
    """What is shown of a pair. p_different, p_equivalent: adjusted after Holm in its family."""

    p_different: float
    p_equivalent: float

    @property
    def verdict(self) -> str:
        """A pair that is both different and equivalent differs by less than matters: it is
        equivalent."""
        if self.p_equivalent < ALPHA:
            return EQUIVALENT
        return DIFFERENT if self.is_different else NOT_SHOWN

    @property
    def is_different(self) -> bool:
        """Whether the two are shown to differ, by however little."""
        return self.p_different < ALPHA


def decide(family: Sequence[Pair], difference: float) -> list[Decision]:
    """What is shown of each pair of a family whose pairs are all testable.

    At most ALPHA of families have a pair that is called different and is not, and as many one that
    is called equivalent and differs by `difference` or more (Holm 1979, once for each claim).
    """
    different = holm([p_different(pair) for pair in family])
    equivalent = holm([p_equivalent(pair, difference) for pair in family])
    return [Decision(*both) for both in zip(different, equivalent, strict=True)]


def p_different(pair: Pair) -> float:
    """Student's paired test of equal means, two-sided."""
    from scipy.special import stdtr

    return 2.0 * float(stdtr(len(pair.over) - 1, -abs(statistic(pair, 1.0))))


def p_equivalent(pair: Pair, difference: float) -> float:
    """Two one-sided tests (Schuirmann 1987): that the ratio of means is not at or below 1 / (1 +
    d), and not at or above 1 + d. Swapping the layouts changes nothing."""
    from scipy.special import stdtr

    above_low, below_high = (
        statistic(pair, 1.0 / (1.0 + difference)),
        -statistic(pair, 1.0 + difference),
    )
    return float(stdtr(len(pair.over) - 1, -min(above_low, below_high)))


def statistic(pair: Pair, r: float) -> float:
    """Student's t of the differences over_i - r under_i; infinite where they all agree and are not
    0."""
    differences = [a - r * b for a, b in zip(*pair, strict=True)]
    mean = statistics.fmean(differences)
    error = math.sqrt(covariance(differences, differences) / len(differences))
    if error == 0.0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / error


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number, in the same order: the i-th smallest of m times m - i +
    1, at least those before it, at most 1 (Holm 1979)."""
    adjusted, most = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        most = max(most, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = most
    return adjusted


def starts_to_differ(pair: Pair, difference: float, family: int) -> int | None:
    """The fewest starts with which a true difference of `difference` is shown with probability
    POWER, if pairs scatter as these do.

    family: how many pairs are tested; the level is that of Holm's first step. None where it would
    be more than MOST_STARTS. The power is that of Student's test, by the noncentral t.
    """
    level = 1.0 - ALPHA / family
    scatter = _scatter(pair)
    return _fewest(lambda n: _exceeds(n, level, difference, scatter) >= POWER)


def starts_to_equal(pair: Pair, difference: float, family: int) -> int | None:
    """The fewest starts with which equal layouts are shown to be equivalent with probability
    POWER.

    Both one-sided tests must reject; each misses with at most half of what may be missed.
    """
    level = 1.0 - 2.0 * ALPHA / family  # two-sided, so that each side has ALPHA / family
    scatter, nearer = _scatter(pair), difference / (1.0 + difference)
    return _fewest(lambda n: _exceeds(n, level, nearer, scatter) >= (1.0 + POWER) / 2)


def _scatter(pair: Pair) -> float:
    """The standard deviation of over_i - r under_i at the estimated ratio r, over the mean of
    `over`; infinite where a mean is 0."""
    a, b = map(statistics.fmean, pair)
    if not a or not b:
        return math.inf
    differences = [x - a / b * y for x, y in zip(*pair, strict=True)]
    return math.sqrt(covariance(differences, differences)) / abs(a)


def _exceeds(n: int, level: float, shift: float, scatter: float) -> float:
    """How likely Student's t of n pairs, which differ by `shift` in truth, is above its two-sided
    quantile."""
    from scipy.special import nctdtr

    if scatter == 0.0:
        return 1.0
    return 1.0 - float(nctdtr(n - 1, shift * math.sqrt(n) / scatter, student_t(n - 1, level)))


def _fewest(suffices: Callable[[int], bool]) -> int | None:
    """The smallest n from 2 on that suffices, for what holds from some n on."""
    high = 2
    while not suffices(high):
        high *= 2
        if high > MOST_STARTS:
            return None
    low = high // 2  # does not suffice, or is 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
