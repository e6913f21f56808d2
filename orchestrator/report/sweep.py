"""A sweep over concurrencies in a terminal: throughput and what one user sees, layout by layout."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.compare import grouped
from orchestrator.analysis.curves import SWEEP

LEGEND = (
    "Each cell: tok/s of all users · tok/s of one (1000 / TPOT). Knee: the point furthest above "
    "the line from the first to the "
    "last. Best point: the largest product of the two."
)


def render(curves: pa.Table, console: Console) -> None:
    """Print each sweep of `curves` (schema CURVES) as a table, with a line per layout below;
    nothing where there is none."""
    for rows in grouped(curves.to_pylist(), SWEEP):
        console.print(
            f"{rows[0]['model']} · {rows[0]['scenario']} · against concurrency", style="bold"
        )
        console.print(_table(rows))
        for row in rows:
            console.print(Text(line(row)))
        console.print()
    if curves.num_rows:
        console.print(LEGEND, style="dim")


def line(row: dict[str, Any]) -> str:
    """What a sweep says of one layout."""
    first, last = row["max_concurrency"][0], row["max_concurrency"][-1]
    parts = [f"knee at {row['knee']}" if row["knee"] else "no knee"]
    if row["best_point"]:
        parts.append(
            "best point at "
            f"{row['best_point']}{', the highest measured' if row['best_point'] == last else ''}"
        )
    if row["user_speed_decay_pct"] is not None:
        change = row["user_speed_decay_pct"]
        parts.append(
            f"a user {'loses' if change >= 0 else 'gains'} {abs(change):.0f}% of their speed from "
            f"{first} to {last}"
        )
    if row["goodput"]:
        highest = row["slo_max_concurrency"]
        parts.append(
            f"meets {row['goodput']} up to {highest}"
            if highest
            else f"does not meet {row['goodput']}"
        )
    return f"{row['name']}: {'; '.join(parts)}"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    table.add_column("concurrent", justify="right")
    for row in rows:
        table.add_column(row["name"], justify="right")
    for concurrency in sorted({c for row in rows for c in row["max_concurrency"]}):
        table.add_row(str(concurrency), *(_point(row, concurrency) for row in rows))
    return table


def _point(row: dict[str, Any], concurrency: int) -> str:
    if concurrency not in row["max_concurrency"]:
        return "-"
    at = row["max_concurrency"].index(concurrency)
    throughput, speed = row["output_throughput"][at], row["user_speed"][at]
    return f"{throughput:.0f} · {'-' if speed is None else f'{speed:.1f}'}"
