"""Intervals of a mean and of a ratio of two means, after Student, Fieller and Welch. The values are
those of starts: each the mean over the runs inside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
CONFIRMING = 6  # starts that follow the first narrow interval before it is believed; see is_narrow


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of one cell: n, mean, standard deviation (of the sample), coefficient of variation,
    95% interval of the mean.

    What n values cannot tell is None: everything but the mean for one value, cv for a mean of 0.
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
    """The ratio of two arithmetic means with its 95% interval.

    low and high are None where a side has fewer than two values, and where the interval has no end
    because the mean below the line may be 0.
    """

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
    std = math.sqrt(covariance(values, values))
    half = student_t(n - 1) * std / math.sqrt(n)
    return Spread(n, mean, std, std / abs(mean) if mean else None, mean - half, mean + half)


def is_narrow(values: Sequence[float], until_ci: float) -> bool:
    """Whether half of the mean's 95% interval is within `until_ci` of it, as was to be reached.

    values: of each start, in the order in which they were made. Stopping at the first narrow
    interval would select starts that happen to agree, and its interval would cover the mean too
    seldom. So CONFIRMING more starts must follow a narrow one, and the interval of all must be
    narrow too. Then it covers the mean in at least 94% of cells, whatever the noise, for up to 20
    starts (docs/measurement.md).
    """
    return _is_within(values, until_ci) and any(
        _is_within(values[:n], until_ci) for n in range(2, len(values) - CONFIRMING + 1)
    )


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio | None:
    """`over` / `under` of two independent sides; None unless both have values and means above 0.

    The interval holds every r for which a test of mean(over) = r mean(under) does not reject:
    |A - rB| <= t(df) sqrt(va + r^2 vb), v being variances over n (Fieller 1954). df is Welch's
    (1947) at the estimated ratio: (va + r^2 vb)^2 / (va^2/(na-1) + r^4 vb^2/(nb-1)).
    """
    found = _means_above_0(over, under)
    if found is None or min(len(over), len(under)) < 2:
        return found and Ratio(found[0] / found[1])
    a, b = found
    va, vb = (covariance(side, side) / len(side) for side in (over, under))
    scaled = (a / b) ** 2 * vb
    if va + scaled == 0.0:
        return Ratio(a / b, a / b, a / b)
    freedom = (va + scaled) ** 2 / (va**2 / (len(over) - 1) + scaled**2 / (len(under) - 1))
    return Ratio(a / b, *_fieller((a, b), (va, 0.0, vb), student_t(freedom)))


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Ratio | None:
    """`over` / `under` where value i of both is of the same round: what slowed both down cancels.

    The interval holds every r for which Student's test of the differences over_i - r under_i does
    not reject a mean of 0 (Fieller's interval of pairs). None unless both means are above 0.
    """
    found = _means_above_0(over, under)
    n = len(over)
    if found is None or n < 2:
        return found and Ratio(found[0] / found[1])
    of_means = (
        covariance(over, over) / n,
        covariance(over, under) / n,
        covariance(under, under) / n,
    )
    return Ratio(found[0] / found[1], *_fieller(found, of_means, student_t(n - 1)))


def covariance(left: Sequence[float], right: Sequence[float]) -> float:
    """Of pairs, as a sample: divided by n - 1. The variance where both are the same."""
    centres = statistics.fmean(left), statistics.fmean(right)
    products = ((x - centres[0]) * (y - centres[1]) for x, y in zip(left, right, strict=True))
    return math.fsum(products) / (len(left) - 1)


def student_t(freedom: float, level: float = LEVEL) -> float:
    """Student's two-sided quantile: |t| stays below it with probability `level`. The same as
    scipy.stats.t.ppf."""
    from scipy.special import stdtrit  # a third of the time that importing scipy.stats takes

    return float(stdtrit(freedom, (1 + level) / 2))


def _is_within(values: Sequence[float], share: float) -> bool:
    found = spread(values)
    half = found.half_width if found else None
    return half is not None and half <= share


def _means_above_0(over: Sequence[float], under: Sequence[float]) -> tuple[float, float] | None:
    if not over or not under:
        return None
    means = statistics.fmean(over), statistics.fmean(under)
    return means if min(means) > 0 else None


def _fieller(
    means: tuple[float, float], variances: tuple[float, float, float], t: float
) -> tuple[float | None, float | None]:
    """The ends of {r: (A - rB)^2 <= t^2 (va - 2r cab + r^2 vb)}, between the roots of a quadratic.

    means: A, B. variances: va, cab, vb of these. (None, None) where the set has no end. Below 0,
    where no ratio of such figures can be, the lower end is 0.
    """
    (a, b), (va, cab, vb) = means, variances
    squared, linear, constant = b * b - t * t * vb, a * b - t * t * cab, a * a - t * t * va
    if squared <= 0.0:
        return None, None
    root = math.sqrt(max(0.0, linear * linear - squared * constant))
    return max(0.0, (linear - root) / squared), (linear + root) / squared
