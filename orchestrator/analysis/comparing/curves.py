"""What a sweep over concurrencies says of each layout: its knee, its best operating point, what a
user loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.rounds import names_of
from orchestrator.analysis.degradation import Degradation, Point, fit
from orchestrator.store.schema import COMPLETED, CellKey
from workers.rows import Table, column, group, grouped, nothing, row

LEAST_KNEE = 0.05  # of the range of throughput; a smaller bend is noise
MET_PCT = 99.0  # of requests within all service levels
Sweep = tuple[str, str, str]


@row
class Curve:
    """One layout over the concurrencies that it was measured at, two or more."""

    experiment: str = column("name of the experiment")
    model: str = column("name of the model")
    strategy: str = column("layout")
    engine: str = column("engine that executes it")
    dtype: str = column("type of weights and activations")
    quantization: str = column('what is FP8; "none"')
    ablation: str = column("what is left out of the layout")
    scenario: str = column("name of the lengths")
    name: str = column("what the layout is called among the others")
    max_concurrency: Sequence[int] = column("requests in flight, rising", "requests")
    output_throughput: Sequence[float] = column("generated tokens a second, mean", "tokens/s")
    user_speed: Sequence[float | None] = column(
        "what one user sees", "tokens/s", formula="1000 / median_tpot_ms"
    )
    knee: int | None = column(
        "where more concurrency stops to pay: furthest above the chord from first to last",
        "requests",
        source="Kneedle, Satopaa et al. 2011, over log2 of the concurrency",
    )
    best_point: int | None = column(
        "the largest throughput x user speed", "requests", source="power, Kleinrock 1979"
    )
    user_speed_decay_pct: float | None = column(
        "what a user loses from the lowest to the highest concurrency", "%"
    )
    fitted: Degradation = group("fitted_{}")
    goodput: str | None = column("service levels, where all points were held to the same")
    slo_max_concurrency: int | None = column(
        "the highest concurrency at which 99% of requests met them, and at every lower one",
        "requests",
    )

    @property
    def sweep(self) -> Sweep:
        """What its curve is set against others within."""
        return self.experiment, self.model, self.scenario


CURVES = Table("curves", Curve)


def curves(comparison: Iterable[Comparison]) -> list[Curve]:
    """A row for each layout that was measured at two concurrencies or more, in the order of the
    comparison."""
    known = [
        one for one in comparison if one.status == COMPLETED and one.throughput.output_throughput
    ]
    sweeps = grouped(known, lambda one: (one.cell.experiment, one.cell.model, one.cell.scenario))
    return [curve for points in sweeps.values() for curve in _of_sweep(points)]


def knee(concurrencies: Sequence[int], throughputs: Sequence[float]) -> int | None:
    """Where more concurrency stops to pay: the point furthest above the chord from the first to the
    last.

    As in Kneedle (Satopaa et al. 2011), over log2 of the concurrency, because a sweep doubles it:
    distances are vertical and over the range of throughput. None below three points, or where none
    lies LEAST_KNEE above: still growing, or flat.
    """
    reach = max(throughputs) - min(throughputs)
    if len(concurrencies) < 3 or not reach:
        return None
    x = [math.log2(c) for c in concurrencies]
    slope = (throughputs[-1] - throughputs[0]) / (x[-1] - x[0])
    above = [
        (y - throughputs[0] - slope * (at - x[0])) / reach
        for at, y in zip(x, throughputs, strict=True)
    ]
    best = max(range(len(above)), key=above.__getitem__)
    return concurrencies[best] if above[best] >= LEAST_KNEE else None


def best_point(
    concurrencies: Sequence[int], throughputs: Sequence[float], speeds: Sequence[float | None]
) -> int | None:
    """The concurrency with the largest throughput x user speed: Kleinrock's power, throughput over
    delay (1979)."""
    powers = {
        c: y * s
        for c, y, s in zip(concurrencies, throughputs, speeds, strict=True)
        if s is not None
    }
    return max(powers, key=lambda c: powers[c]) if powers else None


def decay_pct(speeds: Sequence[float | None]) -> float | None:
    """What is lost from the first to the last, in percent of the first."""
    first, last = speeds[0], speeds[-1]
    return None if first is None or last is None else 100.0 * (1.0 - last / first)


def highest_within(
    concurrencies: Sequence[int], attainment_pct: Sequence[float | None]
) -> int | None:
    """The highest concurrency at which MET_PCT of the requests meet every service level, and at
    every lower one too."""
    highest = None
    for concurrency, attained in zip(concurrencies, attainment_pct, strict=True):
        if attained is None or attained < MET_PCT:
            break
        highest = concurrency
    return highest


def _of_sweep(points: Sequence[Comparison]) -> Iterator[Curve]:
    layouts = grouped(points, lambda one: replace(one.cell, max_concurrency=0))
    for name, cell in zip(names_of(list(layouts)), layouts, strict=True):
        if len(layouts[cell]) > 1:
            yield _of_layout(name, cell, layouts[cell])


def _of_layout(name: str, cell: CellKey, points: Sequence[Comparison]) -> Curve:
    points = sorted(points, key=lambda one: one.cell.max_concurrency)
    concurrencies = [one.cell.max_concurrency for one in points]
    throughputs = [one.throughput.output_throughput or 0.0 for one in points]
    speeds = [one.latency.user_speed for one in points]
    levels = {one.goodput.goodput for one in points}
    same_levels = len(levels) == 1
    attained = [one.goodput.slo_attainment_pct if same_levels else None for one in points]
    layout = {**vars(cell), "name": name, "max_concurrency": concurrencies}
    return Curve(
        **layout,
        output_throughput=throughputs,
        user_speed=speeds,
        knee=knee(concurrencies, throughputs),
        best_point=best_point(concurrencies, throughputs, speeds),
        user_speed_decay_pct=decay_pct(speeds),
        fitted=_fitted(points),
        goodput=levels.pop() if same_levels else None,
        slo_max_concurrency=highest_within(concurrencies, attained),
    )


def _fitted(points: Sequence[Comparison]) -> Degradation:
    """The closed form of a closed loop whose requests make as many tokens each; else nulls."""
    lengths = {one.conditions.output_len for one in points}
    (output_len,) = lengths if len(lengths) == 1 else (None,)
    if output_len is None or any(one.arrivals.is_open for one in points):
        return nothing(Degradation)
    return fit([point for one in points if (point := _point(one))], output_len)


def _point(one: Comparison) -> Point | None:
    """None where a figure of it is not known."""
    made = one.throughput.output_throughput
    first, each = one.latency.ttft.median, one.latency.tpot.median
    if made is None or first is None or each is None:
        return None
    return Point(one.cell.max_concurrency, made, first, each)
