"""The comparison: from the summary of every run to a row per cell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator import bounds, goodput, results, telemetry
from orchestrator.accounting import SHARE_COLUMNS
from orchestrator.confidence import spread
from orchestrator.keys import CELL, CELL_KEY
from orchestrator.metrics import COMPLETED, FAILED, INVALID, LATENCY_COLUMNS
from workers.records import column, table_schema

# Of a cell's completed runs the median is told, one column at a time.
MEDIANS = (
    *LATENCY_COLUMNS, "decode_ms_per_step", "prefill_s", "request_throughput", "total_token_throughput", "duration", "build_s",
    "startup_s", "steady_output_throughput", "steady_s", "request_goodput", "slo_attainment_pct", "mean_schedule_delay_ms",
    "p99_schedule_delay_ms", *SHARE_COLUMNS,
)
# Same for every run of a cell, or so by nature: the first that is known.
CONSTANTS = (
    "num_gpus", "device_name", "input_len", "output_len", "num_prompts", "weight_bytes", "kv_tokens", "comm_calls", "comm_bytes",
    "bound_source", "request_rate", "burstiness",
)
GROUP = ("experiment", "model", "scenario", "max_concurrency")  # within these, layouts are compared

_UNITS = {
    "s": ("prefill_s", "duration", "build_s", "startup_s", "steady_s"), "requests/s": ("request_throughput", "request_goodput"),
    "tokens/s": ("total_token_throughput", "steady_output_throughput"), "%": ("slo_attainment_pct", *SHARE_COLUMNS),
}


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
    column("output_throughput_cv", pa.float64(), "1"),
    column("output_throughput_ci_low", pa.float64(), "tokens/s"),
    column("output_throughput_ci_high", pa.float64(), "tokens/s"),
    column("output_throughput_per_gpu", pa.float64(), "tokens/s"),
    column("relative_to_best", pa.float64(), "1"),
    *(column(name, pa.float64(), _median_unit(name)) for name in MEDIANS),
    *telemetry.COMPARED,
    *bounds.FIELDS,
    column("request_rate", pa.float64(), "requests/s"),
    column("burstiness", pa.float64(), "1"),
    column("goodput", pa.string()),
    column("output_digest", pa.string()),
    column("distinct_outputs", pa.int32(), "1"),
    column("peak_memory_bytes", pa.int64(), "B"),
    column("weight_bytes", pa.int64(), "B"),
    column("kv_tokens", pa.int64(), "tokens"),
    column("comm_calls", pa.int64(), "1"),
    column("comm_bytes", pa.int64(), "B"),
])


def of_folders(folders: Iterable[Path]) -> pa.Table:
    """The comparison of several experiments' results, or of those below a folder. Raises UserError where there are none."""
    return of_summaries(summaries(folders))


def summaries(folders: Iterable[Path], levels: Mapping[str, float] | None = None) -> list[pa.Table]:
    """The summary of each experiment at or below `folders`; with service `levels`, its goodput is that under these.

    Raises UserError where there are no results, or those of another schema version.
    """
    found = [folder for path in folders for folder in results.find(path)]
    for folder in found:
        results.check_version(folder)
    stores = [results.Store(folder) for folder in found]
    tables = [(store, table) for store in stores if (table := store.read("summary")) is not None]
    return [goodput.recomputed(table, store.read("requests"), levels) if levels else table for store, table in tables]


def of_summaries(tables: Sequence[pa.Table]) -> pa.Table:
    """The comparison of several experiments, one after another."""
    return pa.concat_tables(map(compare, tables)) if tables else COMPARISON.empty_table()


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to call cells that did the same work: the layout, with engine, dtype and quantization only where these differ."""
    engines, dtypes = ({f(row) for row in rows} for f in (lambda row: row["engine"], dtype_of))
    return [
        " ".join([row["strategy"], *([row["engine"]] if len(engines) > 1 else []), *([dtype_of(row)] if len(dtypes) > 1 else [])])
        for row in rows
    ]


def dtype_of(row: Mapping[str, Any]) -> str:
    """The dtype of a cell, with its quantization if there is any."""
    return row["dtype"] if row["quantization"] == "none" else f"{row['dtype']}/{row['quantization']}"


def compare(summary: pa.Table) -> pa.Table:
    """A row per cell, by model, scenario and concurrency; within these the best layout first, failed ones last.

    output_throughput is the best of the completed runs, with the mean and the standard deviation (of the sample) beside
    it, the coefficient of variation, and Student's 95% interval of the mean where there are two runs or more;
    relative_to_best is that over the best layout's of the same model, scenario and concurrency. output_digest is None where
    runs differ, distinct_outputs how many there are; goodput columns are None where runs were held to different levels.
    Other columns are medians over runs. A cell that no run completed stays, as "failed" or "invalid"; `reason` is that of
    the last such run.
    """
    cells = [_cell(runs) for runs in grouped(whole(summary), CELL_KEY)]
    cells.sort(key=lambda row: (*(row[name] for name in GROUP), -(row["output_throughput"] or 0.0), row["strategy"], row["engine"]))
    for group in grouped(cells, GROUP):
        best = max((row["output_throughput"] or 0.0 for row in group), default=0.0)
        for row in group:
            row["relative_to_best"] = row["output_throughput"] / best if row["output_throughput"] and best else None
    return pa.Table.from_pylist(cells, schema=COMPARISON)


def whole(summary: pa.Table) -> list[dict[str, Any]]:
    """The runs of a summary that nothing was taken out of: those of an ablation are no results of their layout."""
    return [row for row in summary.to_pylist() if row.get("ablation") in (None, "none")]


def _cell(runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["status"] == COMPLETED]
    row: dict[str, Any] = {name: runs[0].get(name) for name in CELL_KEY}
    row |= {name: _reduce(runs, name, lambda values: values[0]) for name in CONSTANTS}
    bad = [run for run in runs if run["status"] in (FAILED, INVALID)]
    row |= {"status": COMPLETED if done else bad[-1]["status"], "reason": bad[-1]["reason"] if bad else None, "num_runs": len(done)}
    row |= {name: _reduce(done, name, statistics.median) for name in (*MEDIANS, *bounds.FIGURES)}
    powered = [run for run in done if run.get("power_valid")]
    row |= {one.name: _reduce(powered, one.name, statistics.median) for one in telemetry.COMPARED}
    row |= _spread([run["output_throughput"] for run in done if run["output_throughput"] is not None])
    digests = {run["output_digest"] for run in done if run.get("output_digest")}
    row |= {"output_digest": next(iter(digests)) if len(digests) == 1 else None, "distinct_outputs": len(digests)}
    levels = {run.get("goodput") for run in done}
    row |= {"goodput": levels.pop()} if len(levels) == 1 else {"request_goodput": None, "slo_attainment_pct": None}
    row |= {
        "output_throughput_per_gpu": _reduce(done, "output_throughput_per_gpu", max),
        "peak_memory_bytes": _reduce(done, "peak_memory_bytes", max),
    }
    return row


def _spread(throughputs: list[float]) -> dict[str, Any]:
    found = spread(throughputs)
    columns: dict[str, Any] = {"output_throughput": max(throughputs, default=None)}
    for name in ("mean", "std", "cv", "ci_low", "ci_high"):
        columns[f"output_throughput_{name}"] = getattr(found, name, None)
    return columns


def _reduce(runs: Iterable[dict[str, Any]], name: str, function: Callable[[list[Any]], Any]) -> Any:
    values = [run[name] for run in runs if run.get(name) is not None]
    return function(values) if values else None


def grouped(rows: Iterable[dict[str, Any]], names: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """Rows that agree in the columns `names` together, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return list(groups.values())
