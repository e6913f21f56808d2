"""Intervals of a mean and of a ratio of means over a few runs, after Student and Welch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Runs of one cell: n, mean, standard deviation (of the sample), coefficient of variation, 95%
    interval of the mean.

    What n runs cannot tell is None: everything but the mean for one run, cv for a mean of 0.
    """

    n: int
    mean: float
    std: float | None = None
    cv: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval over the mean: 0.05 means "within 5%"."""
        return (
            None
            if self.ci_high is None or not self.mean
            else (self.ci_high - self.mean) / abs(self.mean)
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of two geometric means with its 95% interval; low and high are None where a side
    has one run."""

    value: float
    low: float | None = None
    high: float | None = None


def spread(values: Sequence[float]) -> Spread | None:
    """The interval is mean ± t(n-1) std / sqrt(n), t being Student's quantile. None without
    values."""
    n = len(values)
    if not n:
        return None
    mean = statistics.fmean(values)
    if n == 1:
        return Spread(1, mean)
    std = statistics.stdev(values)
    half = student_t(n - 1) * std / math.sqrt(n)
    return Spread(n, mean, std, std / abs(mean) if mean else None, mean - half, mean + half)


def is_narrow(values: Sequence[float], until_ci: float) -> bool:
    """Whether half of the mean's 95% interval is within `until_ci` of the mean.

    values: the mean of each start of a cell; one or none has no interval.
    """
    found = spread(values)
    half = found.half_width if found else None
    return half is not None and half <= until_ci


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio | None:
    """`over` / `under` with Welch's interval on logarithms; None unless both have values and all
    are above 0.

    With d the difference of the means of the logarithms, and v their variances over n: exp(d ±
    t(df) sqrt(v1 + v2)), df = (v1 + v2)^2 / (v1^2/(n1-1) + v2^2/(n2-1)) (Welch 1947). Logarithms,
    because a ratio is what is asked for and its interval should turn into that of the inverse when
    the sides are swapped.
    """
    if not over or not under or min(*over, *under) <= 0:
        return None
    logs = [math.log(x) for x in over], [math.log(x) for x in under]
    difference = statistics.fmean(logs[0]) - statistics.fmean(logs[1])
    if min(len(over), len(under)) < 2:
        return Ratio(math.exp(difference))
    variances = [statistics.variance(side) / len(side) for side in logs]
    total = sum(variances)
    if total == 0.0:
        return Ratio(math.exp(difference), math.exp(difference), math.exp(difference))
    freedom = total**2 / sum(
        v**2 / (len(side) - 1) for v, side in zip(variances, logs, strict=True)
    )
    half = student_t(freedom) * math.sqrt(total)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half))


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Ratio | None:
    """`over` / `under` where value i of both was measured side by side: what slowed both down then
    cancels.

    With d the differences of logarithms: exp(mean(d) ± t(n-1) std(d) / sqrt(n)). None unless all
    are above 0.
    """
    if not over or min(*over, *under) <= 0:
        return None
    found = spread([math.log(a / b) for a, b in zip(over, under, strict=True)])
    assert found is not None
    ends = (None if end is None else math.exp(end) for end in (found.ci_low, found.ci_high))
    return Ratio(math.exp(found.mean), *ends)


def student_t(freedom: float, level: float = LEVEL) -> float:
    """Student's two-sided quantile: |t| stays below it with probability `level`. The same as
    scipy.stats.t.ppf."""
    from scipy.special import stdtrit  # a third of the time that importing scipy.stats takes

    return float(stdtrit(freedom, (1 + level) / 2))
