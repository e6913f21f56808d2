"""The comparison: from the summary of every run to a row per cell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator import results
from orchestrator.metrics import CELL, COMM_COLUMNS, COMPLETED, FAILED, LATENCY_COLUMNS
from workers.records import column, table_schema

# Of a cell's completed runs the median is told, one column at a time.
MEDIANS = (
    *LATENCY_COLUMNS, "decode_ms_per_step", "prefill_s", "request_throughput", "total_token_throughput", "duration", "build_s",
    "startup_s", *COMM_COLUMNS,
)
# Same for every run of a cell, or so by nature: the first that is known.
CONSTANTS = (
    "num_gpus", "device_name", "input_len", "output_len", "num_prompts", "weight_bytes", "kv_tokens", "comm_calls", "comm_bytes",
)
KEY = tuple(field.name for field in CELL)
GROUP = ("experiment", "model", "scenario", "max_concurrency")  # within these, layouts are compared

_UNITS = {"s": ("prefill_s", "duration", "build_s", "startup_s"), "requests/s": ("request_throughput",),
          "tokens/s": ("total_token_throughput",), "%": COMM_COLUMNS}


def _median_unit(name: str) -> str:
    return next((unit for unit, names in _UNITS.items() if name in names), "ms")


COMPARISON = table_schema("comparison", [
    *CELL,
    column("status", pa.string()),
    column("reason", pa.string()),
    column("num_gpus", pa.int32(), "1"),
    column("device_name", pa.string()),
    column("input_len", pa.int32(), "tokens"),
    column("output_len", pa.int32(), "tokens"),
    column("num_prompts", pa.int32(), "requests"),
    column("num_runs", pa.int32(), "1"),
    column("output_throughput", pa.float64(), "tokens/s"),
    column("output_throughput_mean", pa.float64(), "tokens/s"),
    column("output_throughput_std", pa.float64(), "tokens/s"),
    column("output_throughput_per_gpu", pa.float64(), "tokens/s"),
    column("relative_to_best", pa.float64(), "1"),
    *(column(name, pa.float64(), _median_unit(name)) for name in MEDIANS),
    column("peak_memory_bytes", pa.int64(), "B"),
    column("weight_bytes", pa.int64(), "B"),
    column("kv_tokens", pa.int64(), "tokens"),
    column("comm_calls", pa.int64(), "1"),
    column("comm_bytes", pa.int64(), "B"),
])


def of_folders(folders: Iterable[Path]) -> pa.Table:
    """The comparison of several experiments' results, or of those below a folder. Raises UserError where there are none."""
    found = [folder for path in folders for folder in results.find(path)]
    for folder in found:
        results.check_version(folder)
    tables = [table for folder in found if (table := results.Store(folder).read("summary")) is not None]
    return pa.concat_tables(compare(table) for table in tables) if tables else COMPARISON.empty_table()


def compare(summary: pa.Table) -> pa.Table:
    """A row per cell, by model, scenario and concurrency; within these the best layout first, failed ones last.

    output_throughput is the best of the completed runs, with the mean and the standard deviation (of the sample) beside
    it; relative_to_best is that over the best layout's of the same model, scenario and concurrency. Other columns are
    medians over runs. A cell that no run completed stays, as "failed"; `reason` is that of the last failed run.
    """
    cells = [_cell(runs) for runs in _grouped(summary.to_pylist(), KEY)]
    cells.sort(key=lambda row: (*(row[name] for name in GROUP), -(row["output_throughput"] or 0.0), row["strategy"], row["engine"]))
    for group in _grouped(cells, GROUP):
        best = max((row["output_throughput"] or 0.0 for row in group), default=0.0)
        for row in group:
            row["relative_to_best"] = row["output_throughput"] / best if row["output_throughput"] and best else None
    return pa.Table.from_pylist(cells, schema=COMPARISON)


def _cell(runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["status"] == COMPLETED]
    row: dict[str, Any] = {name: runs[0][name] for name in KEY}
    row |= {name: _reduce(runs, name, lambda values: values[0]) for name in CONSTANTS}
    reasons = [run["reason"] for run in runs if run["status"] == FAILED]
    row |= {"status": COMPLETED if done else FAILED, "reason": reasons[-1] if reasons else None, "num_runs": len(done)}
    row |= {name: _reduce(done, name, statistics.median) for name in MEDIANS}
    row |= {
        "output_throughput": _reduce(done, "output_throughput", max),
        "output_throughput_mean": _reduce(done, "output_throughput", statistics.fmean),
        "output_throughput_std": _reduce(done, "output_throughput", lambda v: statistics.stdev(v) if len(v) > 1 else None),
        "output_throughput_per_gpu": _reduce(done, "output_throughput_per_gpu", max),
        "peak_memory_bytes": _reduce(done, "peak_memory_bytes", max),
    }
    return row


def _reduce(runs: Iterable[dict[str, Any]], name: str, function: Callable[[list[Any]], Any]) -> Any:
    values = [run[name] for run in runs if run[name] is not None]
    return function(values) if values else None


def _grouped(rows: Iterable[dict[str, Any]], names: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())
