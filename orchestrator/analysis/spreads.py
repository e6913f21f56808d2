"""How far the runs of each cell lie apart, metric by metric, and which cells are less certain than
was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from orchestrator.analysis import verdicts
from orchestrator.analysis.compare import counted, grouped, names_of, whole
from orchestrator.analysis.confidence import Spread, spread
from orchestrator.analysis.metrics import SUMMARY
from orchestrator.store.schema import CELL, CELL_KEY
from workers.records import column, table_schema

METRICS = tuple(metric.column for metric in verdicts.METRICS)
OF_ROW = "see `unit`"

STATISTICS = table_schema(
    "statistics",
    [
        *CELL,
        column("metric", pa.string()),
        column("unit", pa.string()),
        column("n", pa.int32(), "1"),
        column("mean", pa.float64(), OF_ROW),
        column("std", pa.float64(), OF_ROW),
        column("cv", pa.float64(), "1"),
        column("ci_low", pa.float64(), OF_ROW),
        column("ci_high", pa.float64(), OF_ROW),
    ],
)
UNSETTLED = table_schema(
    "unsettled",
    [
        *CELL,
        column("n", pa.int32(), "1"),
        column("half_width", pa.float64(), "1"),
        column("until_ci", pa.float64(), "1"),
        column("sentence", pa.string()),
    ],
)


def statistics(summary: pa.Table) -> pa.Table:
    """A row per cell and metric that was measured: the mean over its runs and their spread, as
    `confidence.spread` has them.

    n: the runs that count, see `compare.counted`; a metric of no run has no row. A latency is that
    of each run: the median over its requests.
    """
    rows = [
        row
        for runs in grouped(whole(summary), CELL_KEY)
        for metric in METRICS
        for row in _of_metric(runs, metric)
    ]
    return pa.Table.from_pylist(rows, schema=STATISTICS)


def unsettled(statistics: pa.Table, until_ci: float | None) -> pa.Table:
    """The cells whose output_throughput has an interval half of which is above `until_ci` of the
    mean, or has none yet.

    half_width: half the interval over the mean, null for one run. Nothing is unsettled where
    `until_ci` is None.
    """
    rows = (
        [row for row in statistics.to_pylist() if row["metric"] == "output_throughput"]
        if until_ci is not None
        else []
    )
    named = zip(names_of(rows), rows, strict=True)
    return pa.Table.from_pylist(
        [found for name, row in named for found in _too_wide(name, row, until_ci or 0.0)],
        schema=UNSETTLED,
    )


def _of_metric(runs: list[dict[str, Any]], metric: str) -> Iterator[dict[str, Any]]:
    found = spread([run[metric] for run in counted(runs, metric)])
    if found is not None:
        figures = {
            name: getattr(found, name) for name in ("n", "mean", "std", "cv", "ci_low", "ci_high")
        }
        unit = SUMMARY.field(metric).metadata[b"unit"].decode()
        yield (
            {name: runs[0].get(name) for name in CELL_KEY}
            | {"metric": metric, "unit": unit}
            | figures
        )


def _too_wide(name: str, row: Mapping[str, Any], until_ci: float) -> Iterator[dict[str, Any]]:
    half = Spread(row["n"], row["mean"], ci_high=row["ci_high"]).half_width
    if half is not None and half <= until_ci:
        return
    runs = "1 run" if row["n"] == 1 else f"{row['n']} runs"
    reached = "no interval" if half is None else f"still ±{100 * half:.1f}%"
    sentence = (
        f"{name} {row['scenario']} at {row['max_concurrency']}: {reached} after {runs} (asked "
        f"±{100 * until_ci:g}%)"
    )
    yield {key: row[key] for key in CELL_KEY} | {
        "n": row["n"],
        "half_width": half,
        "until_ci": until_ci,
        "sentence": sentence,
    }
