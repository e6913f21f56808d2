"""The comparison: from the summary of every run to a row per cell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.analysis import accounting, bounds, goodput
from orchestrator.analysis import energy as telemetry
from orchestrator.analysis.confidence import spread
from orchestrator.analysis.metrics import COMPLETED, FAILED, INVALID, LATENCY_COLUMNS, SUMMARY
from orchestrator.store import results
from orchestrator.store.schema import CELL, CELL_KEY
from workers.records import column, table_schema

# Over a cell's completed runs: the mean of rates and of energy, the median of times and shares, one
# column at a time.
RATES = (
    "output_throughput_per_gpu",
    "request_throughput",
    "total_token_throughput",
    "steady_output_throughput",
    "request_goodput",
)
ENERGY = tuple(field.name for field in telemetry.COMPARED)
MEDIANS = (
    *LATENCY_COLUMNS,
    "decode_ms_per_step",
    "prefill_s",
    "duration",
    "build_s",
    "startup_s",
    "steady_s",
    "slo_attainment_pct",
    "mean_schedule_delay_ms",
    "median_schedule_delay_ms",
    "p99_schedule_delay_ms",
)
# Same for every run of a cell, or so by nature (in an open loop the calls of the first run stand
# for all): the first that is known.
CONSTANTS = (
    "num_gpus",
    "device_name",
    "input_len",
    "output_len",
    "num_prompts",
    "weight_bytes",
    "kv_tokens",
    "comm_calls",
    "comm_bytes",
    "bound_source",
    "request_rate",
    "burstiness",
    *accounting.COLUMNS,
)
GROUP = ("experiment", "model", "scenario", "max_concurrency")  # within these, layouts are compared

COMPARISON = table_schema(
    "comparison",
    [
        *CELL,
        column("status", pa.string()),
        column("reason", pa.string()),
        column("reason_status", pa.string()),
        column("num_gpus", pa.int32(), "1"),
        column("device_name", pa.string()),
        column("input_len", pa.int32(), "tokens"),
        column("output_len", pa.int32(), "tokens"),
        column("num_prompts", pa.int32(), "requests"),
        column("num_runs", pa.int32(), "1"),
        column("num_turns", pa.int32(), "1"),
        column("output_throughput", pa.float64(), "tokens/s"),
        column("output_throughput_std", pa.float64(), "tokens/s"),
        column("output_throughput_cv", pa.float64(), "1"),
        column("output_throughput_ci_low", pa.float64(), "tokens/s"),
        column("output_throughput_ci_high", pa.float64(), "tokens/s"),
        column("output_throughput_best", pa.float64(), "tokens/s"),
        column("relative_to_best", pa.float64(), "1"),
        *(SUMMARY.field(name) for name in (*RATES, *MEDIANS)),
        *accounting.FIELDS,
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
    ],
)


def of_folders(folders: Iterable[Path]) -> pa.Table:
    """The comparison of several experiments' results, or of those below a folder. Raises UserError
    where there are none."""
    return of_summaries([summary for _, summary in experiments(folders)])


def experiments(
    folders: Iterable[Path], levels: Mapping[str, float] | None = None
) -> list[tuple[dict[str, Any], pa.Table]]:
    """Manifest and summary of each experiment at or below `folders`; with service `levels`, goodput
    is that under these.

    Without levels the requests are not read, so that a result of many requests opens as fast as one
    of few.

    Raises UserError where there are no results, or those of another schema version.
    """
    found = [folder for path in folders for folder in results.find(path)]
    for folder in found:
        results.check_version(folder)
    stores = [results.Store(folder) for folder in found]
    tables = [(store, table) for store in stores if (table := store.read("summary")) is not None]
    return [
        (
            store.manifest(),
            goodput.recomputed(table, store.read("requests"), levels) if levels else table,
        )
        for store, table in tables
    ]


def of_summaries(tables: Sequence[pa.Table]) -> pa.Table:
    """The comparison of several experiments, one after another."""
    return pa.concat_tables(map(compare, tables)) if tables else COMPARISON.empty_table()


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to call cells that did the same work: the layout, with engine, dtype and quantization
    only where these differ."""
    engines, dtypes = ({f(row) for row in rows} for f in (lambda row: row["engine"], dtype_of))
    return [
        " ".join(
            [
                row["strategy"],
                *([row["engine"]] if len(engines) > 1 else []),
                *([dtype_of(row)] if len(dtypes) > 1 else []),
            ]
        )
        for row in rows
    ]


def run_order(rows: Sequence[Mapping[str, Any]]) -> str:
    """In which order the runs behind rows of the comparison were made, as a sentence; empty where
    that says nothing."""
    several = [row for row in rows if row["num_runs"] > 1]
    in_turns = [row for row in several if row.get("num_turns") == row["num_runs"]]
    if not several or len({row["strategy"] for row in several}) == 1:
        return ""
    if len(in_turns) == len(several):
        return (
            "Layouts took turns, run by run: their ratios are of pairs of runs from the same turn."
        )
    which = "Some runs" if in_turns else "The runs"
    return (
        f"{which} of a layout follow each other: not interleaved, layouts would differ by a drift "
        "of the machine too."
    )


def dtype_of(row: Mapping[str, Any]) -> str:
    """The dtype of a cell, with its quantization if there is any."""
    return (
        row["dtype"] if row["quantization"] == "none" else f"{row['dtype']}/{row['quantization']}"
    )


def compare(summary: pa.Table) -> pa.Table:
    """A row per cell, by model, scenario and concurrency; within these the best layout first,
    failed ones last.

    Figures are of the completed runs. output_throughput is their mean, with the standard deviation
    (of the sample), the coefficient of variation, and Student's 95% interval where there are two
    runs or more; output_throughput_best is the best run; relative_to_best is the mean over that of
    the best layout of the same model, scenario and concurrency. Other rates, what is told of the
    bounds, and power and energy (of runs whose power is valid) are means too. Latencies and other
    times are medians over runs, of what each run says of its requests: p99_ttft_ms is the median of
    the runs' 99th percentiles.

    output_digest is None where runs differ, distinct_outputs how many there are; goodput columns
    are None where runs were held to different levels. num_turns: turns that the runs were made in;
    as many as runs where layouts took turns. A cell that no run completed stays, as "failed" or
    "invalid". `reason` is that of the last run that failed or is invalid, and `reason_status` which
    of the two it is, whatever came of the other runs.
    """
    cells = [_cell(runs) for runs in grouped(whole(summary), CELL_KEY)]
    cells.sort(
        key=lambda row: (
            *(row[name] for name in GROUP),
            -(row["output_throughput"] or 0.0),
            row["strategy"],
            row["engine"],
        )
    )
    for group in grouped(cells, GROUP):
        best = max((row["output_throughput"] or 0.0 for row in group), default=0.0)
        for row in group:
            row["relative_to_best"] = (
                row["output_throughput"] / best if row["output_throughput"] and best else None
            )
    return pa.Table.from_pylist(cells, schema=COMPARISON)


def whole(summary: pa.Table) -> list[dict[str, Any]]:
    """The runs of a summary that nothing was taken out of: those of an ablation are no results of
    their layout."""
    return [row for row in summary.to_pylist() if row.get("ablation") in (None, "none")]


def counted(runs: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The completed runs of a cell whose figure `name` is known and can be set against another's.

    Energy counts where the power of a run is known to be valid; goodput where all runs were held to
    the same levels.
    """
    done = [run for run in runs if run["status"] == COMPLETED]
    if name in ENERGY:
        done = [run for run in done if run.get("power_valid") is True]
    if (
        name in ("request_goodput", "slo_attainment_pct")
        and len({run.get("goodput") for run in done}) > 1
    ):
        return []
    return [run for run in done if run.get(name) is not None]


def _cell(runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["status"] == COMPLETED]
    bad = [run for run in runs if run["status"] in (FAILED, INVALID)]
    row: dict[str, Any] = {name: runs[0].get(name) for name in CELL_KEY}
    row |= {name: _reduce(done or runs, name, lambda values: values[0]) for name in CONSTANTS}
    row |= {"status": COMPLETED if done else bad[-1]["status"], "num_runs": len(done)}
    row |= {"reason": bad[-1]["reason"], "reason_status": bad[-1]["status"]} if bad else {}
    row |= {
        name: _reduce(counted(runs, name), name, statistics.fmean)
        for name in (*RATES, *ENERGY, *bounds.FIGURES)
    }
    row |= {name: _reduce(counted(runs, name), name, statistics.median) for name in MEDIANS}
    row |= _throughput([run["output_throughput"] for run in counted(runs, "output_throughput")])
    turns, levels = ({run.get(name) for run in done} for name in ("turn", "goodput"))
    digests = {run["output_digest"] for run in done if run.get("output_digest")}
    return row | {
        "num_turns": None if None in turns else len(turns),
        "goodput": levels.pop() if len(levels) == 1 else None,
        "output_digest": next(iter(digests)) if len(digests) == 1 else None,
        "distinct_outputs": len(digests),
        "peak_memory_bytes": _reduce(done, "peak_memory_bytes", max),
    }


def _throughput(runs: list[float]) -> dict[str, Any]:
    found = spread(runs)
    columns = {
        f"output_throughput_{name}": getattr(found, name, None)
        for name in ("std", "cv", "ci_low", "ci_high")
    }
    return columns | {
        "output_throughput": found.mean if found else None,
        "output_throughput_best": max(runs, default=None),
    }


def _reduce(
    runs: Iterable[Mapping[str, Any]], name: str, function: Callable[[list[Any]], Any]
) -> Any:
    values = [run[name] for run in runs if run.get(name) is not None]
    return function(values) if values else None


def grouped(rows: Iterable[dict[str, Any]], names: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """Rows that agree in the columns `names` together, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return list(groups.values())
