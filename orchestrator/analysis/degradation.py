"""How latencies grow with the requests in flight, as a line each, and what follows from that in
closed form: throughput, knee, best operating point, decay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workers.rows import column, nothing, row
from workers.units import significant

LITTLE = "Little 1961"
ROUNDING = 1e-6  # share of a latency that a request adds, below which it adds nothing
CLIPPED = 0.01  # of a latency, by which it falls with more requests: less is noise of a flat one
MOST_ERROR_PCT = 15.0  # above which the points lie on no line
FEW, MANY = 1, 100  # requests between which the decay of a user's speed is said


@row
class Degradation:
    """Lines through the latencies of a closed loop, and what follows from them.

    A decode step streams the weights once, and adds the KV and the arithmetic of each request;
    prompts are read one after another. So both latencies are a part of their own and one for each
    request in flight, c. Null where fewer than two concurrencies are known. What follows from the
    lines is null, too, where these do not fit the points.
    """

    tpot_base_ms: float | None = column(
        "of the line through median_tpot_ms, what no request adds", "ms"
    )
    tpot_each_ms: float | None = column("what each request in flight adds to it", "ms")
    ttft_base_ms: float | None = column(
        "of the line through median_ttft_ms, what no request adds", "ms"
    )
    ttft_each_ms: float | None = column("what each request in flight adds to it", "ms")
    formula: str | None = column(
        "output_throughput and TPOT in closed form, of c requests in flight",
        formula="1000 x output_len x c / (TTFT(c) + (output_len - 1) x TPOT(c))",
        source=LITTLE,
    )
    max_throughput: float | None = column(
        "what output_throughput tends to; null where no request adds to a latency",
        "tokens/s",
        formula="1000 x output_len / (ttft_each + (output_len - 1) x tpot_each)",
    )
    knee: float | None = column(
        "where the line of one request's throughput meets that limit: half of the limit is reached",
        "requests",
        formula="(ttft_base + (output_len - 1) x tpot_base) / "
        "(ttft_each + (output_len - 1) x tpot_each)",
        source="asymptotic bounds, Denning and Buzen 1978",
    )
    best_point: float | None = column(
        "the largest throughput x user speed; null where it only grows",
        "requests",
        formula="sqrt(knee x tpot_base / tpot_each)",
        source="power, Kleinrock 1979",
    )
    decay_pct: float | None = column(
        f"what a user loses of their speed from {FEW} to {MANY} in flight",
        "%",
        formula=f"100 x (1 - TPOT({FEW}) / TPOT({MANY}))",
    )
    error_pct: float | None = column(
        "the greatest error of the closed form over the points, of output_throughput and of "
        "user speed",
        "%",
    )
    misfit: str | None = column(
        "why no closed form is said: a part of a line is below 0, or error_pct is above "
        f"{MOST_ERROR_PCT:g}; null where it fits"
    )

    def sentence(self, last: int) -> str:
        """The closed form and what follows from it; empty where there is none. last: the highest
        concurrency that it was fitted to."""
        if self.misfit is not None:
            return f"no closed form: {self.misfit}"
        if self.formula is None:
            return ""
        points = {"knee": self.knee, "best point": self.best_point}
        said = [f"{name} at {_at(at, last)}" for name, at in points.items() if at is not None]
        said.append(f"a user loses {self.decay_pct:.0f}% from {FEW} to {MANY}")
        return f"{self.formula} (within {self.error_pct:.1f}%): {', '.join(said)}"


@dataclass(frozen=True, slots=True)
class Point:
    """Of a closed loop of so many requests. Throughput in tokens/s, latencies in ms."""

    concurrency: int
    throughput: float
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Line:
    """base + each x c, in ms. clipped: which part would be below 0,
    and is 0, in words."""

    base: float
    each: float
    clipped: str = ""

    def at(self, concurrency: float) -> float:
        """ms"""
        return self.base + self.each * concurrency


def line(concurrencies: Sequence[int], times: Sequence[float]) -> Line:
    """The line of the least squared relative errors, of which neither part is below 0. times: in
    ms, each above 0."""
    rows = np.array([(1 / ms, c / ms) for c, ms in zip(concurrencies, times, strict=True)])
    (base, each), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    least, clipped = (rows * (base, each)).min(axis=0), ""
    if base < 0 or each < 0:
        flat, steep = (column.sum() / (column @ column) for column in rows.T)
        candidates = ((flat, 0.0), (0.0, steep))
        base, each = min(candidates, key=lambda one: float(np.sum((rows @ one - 1) ** 2)))
        clipped = "what each request adds is below 0" if least[1] < -CLIPPED else ""
    if base <= ROUNDING * min(times):
        clipped = "what no request adds is not above 0"
    return Line(float(base), float(each) if each > ROUNDING * base else 0.0, clipped)


def fit(points: Sequence[Point], output_len: int) -> Degradation:
    """The closed form through two points or more of a closed loop in which each request makes
    `output_len` tokens; nulls for fewer, and where there is no further token.

    Throughput follows by Little's law, from latencies alone: so its error says whether they and it
    were measured of the same loop.
    """
    known = [one for one in points if min(one.throughput, one.ttft_ms, one.tpot_ms) > 0]
    if len({one.concurrency for one in known}) < 2 or output_len < 2:
        return nothing(Degradation)
    at = [one.concurrency for one in known]
    tpot = line(at, [one.tpot_ms for one in known])
    ttft = line(at, [one.ttft_ms for one in known])
    more = output_len - 1
    whole = Line(ttft.base + more * tpot.base, ttft.each + more * tpot.each)
    error_pct = 100 * max(_errors(known, whole, tpot, output_len))
    lines = replace(
        nothing(Degradation),
        tpot_base_ms=tpot.base,
        tpot_each_ms=tpot.each,
        ttft_base_ms=ttft.base,
        ttft_each_ms=ttft.each,
        error_pct=error_pct,
        misfit=next(_misfits(tpot, ttft, error_pct), None),
    )
    return lines if lines.misfit else _followed(lines, whole, tpot, output_len)


def _misfits(tpot: Line, ttft: Line, error_pct: float) -> Iterator[str]:
    """Why lines do not fit their points."""
    for name, one in (("TPOT", tpot), ("TTFT", ttft)):
        if one.clipped:
            yield f"in a line through {name}, {one.clipped}"
    if error_pct > MOST_ERROR_PCT:
        yield f"the points are up to {error_pct:.0f}% off the lines through them"


def _followed(lines: Degradation, whole: Line, tpot: Line, output_len: int) -> Degradation:
    """Lines that fit, and what follows from them. whole: of a request's time."""
    knee = whole.base / whole.each if whole.each else None
    is_peaked = bool(knee and tpot.each)
    return replace(
        lines,
        formula=_formula(1e3 * output_len / whole.base, knee, tpot),
        max_throughput=1e3 * output_len / whole.each if whole.each else None,
        knee=knee,
        best_point=math.sqrt(knee * tpot.base / tpot.each) if knee and is_peaked else None,
        decay_pct=100 * (1 - tpot.at(FEW) / tpot.at(MANY)),
    )


def _errors(points: Sequence[Point], whole: Line, tpot: Line, output_len: int) -> Sequence[float]:
    made = [1e3 * output_len * one.concurrency / whole.at(one.concurrency) for one in points]
    speeds = [one.tpot_ms / tpot.at(one.concurrency) for one in points]
    reached = [said / one.throughput for said, one in zip(made, points, strict=True)]
    return [abs(ratio - 1) for ratio in (*reached, *speeds)]


def _at(point: float, last: int) -> str:
    return significant(point, 3) + (f" (beyond {last})" if point > last else "")


def _formula(alone: float, knee: float | None, tpot: Line) -> str:
    bend = f" / (1 + c/{significant(knee, 3)})" if knee else ""
    line = f"{significant(tpot.base, 4)} + {significant(tpot.each, 3)} c ms"
    return f"tok/s = {significant(alone, 4)} c{bend}, TPOT = {line}"
