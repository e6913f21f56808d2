"""What a step costs without its collectives, or without peer-to-peer links: an independent check of
the profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import pyarrow as pa

from orchestrator.analysis.compare import grouped
from orchestrator.analysis.metrics import COMPLETED
from orchestrator.store.schema import CELL, CELL_KEY
from workers.records import column, table_schema

WHOLE = tuple(
    name for name in CELL_KEY if name != "ablation"
)  # within these, runs are set against those that lack nothing

EFFECTS = table_schema(
    "ablations",
    [
        *CELL,
        column("decode_ms_per_step", pa.float64(), "ms"),
        column("decode_ms_per_step_without", pa.float64(), "ms"),
        column("saved_pct", pa.float64(), "%"),
        column("comm_exposed_pct", pa.float64(), "%"),
    ],
)


def effects(summary: pa.Table) -> pa.Table:
    """A row per ablated cell whose whole counterpart was run too.

    decode_ms_per_step: medians over runs, whole and without; saved_pct = 100 x (1 - without /
    whole), to be held against comm_exposed_pct of the profile when collectives were left out.
    """
    done = [
        {**row, "ablation": row.get("ablation") or "none"}
        for row in summary.to_pylist()
        if row["status"] == COMPLETED
    ]
    rows = [
        row for row in done if row["decode_ms_per_step"]
    ]  # outputs of one token have no decode step
    return pa.Table.from_pylist(
        [effect for cell in grouped(rows, WHOLE) for effect in _of_cell(cell)], schema=EFFECTS
    )


def _of_cell(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    by_ablation = {runs[0]["ablation"]: runs for runs in grouped(rows, ("ablation",))}
    whole = by_ablation.pop("none", [])
    for runs in by_ablation.values() if whole else ():
        before, after = (
            median(row["decode_ms_per_step"] for row in side) for side in (whole, runs)
        )
        yield {
            **{name: runs[0][name] for name in CELL_KEY},
            "decode_ms_per_step": before,
            "decode_ms_per_step_without": after,
            "saved_pct": 100.0 * (1.0 - after / before),
            "comm_exposed_pct": whole[0]["comm_exposed_pct"],
        }


def sentence(row: Mapping[str, Any]) -> str:
    """One line on an effect."""
    cell = f"{row['strategy']} {row['scenario']} at {row['max_concurrency']} concurrent"
    before, after = row["decode_ms_per_step"], row["decode_ms_per_step_without"]
    if row["ablation"] == "comm":
        profile = (
            ""
            if row["comm_exposed_pct"] is None
            else f"; the profile says {row['comm_exposed_pct']:.1f}%"
        )
        return (
            f"Without collectives: {cell}: {before:.2f} -> {after:.2f} ms a step, "
            f"{row['saved_pct']:.1f}% less{profile}."
        )
    return (
        f"Without peer-to-peer links: {cell}: {before:.2f} -> {after:.2f} ms a step, x "
        f"{after / before:.2f}."
    )
