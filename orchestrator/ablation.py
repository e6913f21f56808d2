"""What a step costs without its collectives, or without peer-to-peer links: an independent check of the profile."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from orchestrator.keys import CELL_KEY
from orchestrator.metrics import COMPLETED
from orchestrator.results import Store

NAMES = tuple(name for name in CELL_KEY if name not in ("experiment", "ablation"))


def effects(store: Store) -> list[dict[str, Any]]:
    """A row per ablated cell whose whole counterpart was run too.

    decode_ms_per_step: medians over runs, whole and without; saved_pct = 100 x (1 - without / whole), to be held against
    comm_exposed_pct of the profile when collectives were left out.
    """
    summary = store.read("summary")
    done = [row for row in summary.to_pylist() if row["status"] == COMPLETED] if summary is not None else []
    rows = [row for row in done if row["decode_ms_per_step"]]  # outputs of one token have no decode step
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["ablation"], *(row[name] for name in NAMES)), []).append(row)
    out = []
    for (ablation, *cell), runs in cells.items():
        whole = cells.get(("none", *cell))
        if ablation == "none" or whole is None:
            continue
        before, after = (median(row["decode_ms_per_step"] for row in side) for side in (whole, runs))
        out.append({
            **dict(zip(NAMES, cell, strict=True)),
            "ablation": ablation,
            "decode_ms_per_step": before,
            "decode_ms_per_step_without": after,
            "saved_pct": 100.0 * (1.0 - after / before),
            "comm_exposed_pct": whole[0]["comm_exposed_pct"],
        })
    return out


def sentences(store: Store) -> Iterator[str]:
    """One line per effect."""
    for row in effects(store):
        cell = f"{row['strategy']} {row['scenario']} at {row['max_concurrency']} concurrent"
        before, after = row["decode_ms_per_step"], row["decode_ms_per_step_without"]
        if row["ablation"] == "comm":
            profile = "" if row["comm_exposed_pct"] is None else f"; the profile says {row['comm_exposed_pct']:.1f}%"
            yield f"Without collectives: {cell}: {before:.2f} -> {after:.2f} ms a step, {row['saved_pct']:.1f}% less{profile}."
        else:
            yield f"Without peer-to-peer links: {cell}: {before:.2f} -> {after:.2f} ms a step, x {after / before:.2f}."
