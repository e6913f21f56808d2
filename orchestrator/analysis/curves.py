"""What a sweep over concurrencies says of each layout: its knee, its best operating point, what a
user loses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from orchestrator.analysis.compare import grouped, names_of
from orchestrator.analysis.metrics import COMPLETED
from orchestrator.store.schema import CELL_KEY
from workers.records import column, table_schema

SWEEP = (
    "experiment",
    "model",
    "scenario",
)  # within these, the curves of layouts are set against each other
LAYOUT = tuple(name for name in CELL_KEY if name != "max_concurrency")
LEAST_KNEE = 0.05  # of the range of throughput; a smaller bend is noise
MET_PCT = 99.0  # of requests within all service levels

CURVES = table_schema(
    "curves",
    [
        *(column(name, pa.string()) for name in LAYOUT),
        column("name", pa.string()),
        column("max_concurrency", pa.list_(pa.int32()), "requests"),
        column("output_throughput", pa.list_(pa.float64()), "tokens/s"),
        column("user_speed", pa.list_(pa.float64()), "tokens/s"),
        column("knee", pa.int32(), "requests"),
        column("best_point", pa.int32(), "requests"),
        column("user_speed_decay_pct", pa.float64(), "%"),
        column("goodput", pa.string()),
        column("slo_max_concurrency", pa.int32(), "requests"),
    ],
)


def curves(comparison: pa.Table) -> pa.Table:
    """A row for each layout that was measured at two concurrencies or more, in the order of the
    comparison.

    output_throughput: mean over runs. user_speed: what one user sees, 1000 / median_tpot_ms.
    user_speed_decay_pct: what it loses from the lowest to the highest concurrency.
    slo_max_concurrency: see `highest_within`; the others: see below.
    """
    rows = [
        row
        for row in comparison.to_pylist()
        if row["status"] == COMPLETED and row["output_throughput"]
    ]
    return pa.Table.from_pylist(
        [curve for sweep in grouped(rows, SWEEP) for curve in _of_sweep(sweep)], schema=CURVES
    )


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


def _of_sweep(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    layouts = grouped(rows, LAYOUT)
    names = names_of([points[0] for points in layouts])
    for name, points in zip(names, layouts, strict=True):
        if len(points) > 1:
            yield {key: points[0][key] for key in LAYOUT} | {"name": name} | _of_layout(points)


def _of_layout(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row["max_concurrency"])
    concurrencies = [row["max_concurrency"] for row in rows]
    throughputs = [row["output_throughput"] for row in rows]
    speeds = [1e3 / row["median_tpot_ms"] if row["median_tpot_ms"] else None for row in rows]
    levels = {row["goodput"] for row in rows}
    attained = [row["slo_attainment_pct"] if len(levels) == 1 else None for row in rows]
    return {
        "max_concurrency": concurrencies,
        "output_throughput": throughputs,
        "user_speed": speeds,
        "knee": knee(concurrencies, throughputs),
        "best_point": best_point(concurrencies, throughputs, speeds),
        "user_speed_decay_pct": decay_pct(speeds),
        "goodput": levels.pop() if len(levels) == 1 else None,
        "slo_max_concurrency": highest_within(concurrencies, attained),
    }
