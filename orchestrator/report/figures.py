"""From the tables of results to the data of the charts: plain lists and numbers, ready for JSON,
small enough for a page."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.analysis import bounds
from orchestrator.analysis.accounting import PARTS
from orchestrator.analysis.compare import names_of
from orchestrator.analysis.metrics import COMPLETED, INVALID
from orchestrator.store.schema import CELL_KEY

Row = Mapping[str, Any]
T = TypeVar("T")
MISSING = "none"
PHASES = {"decode": "", "prefill": "prefill_"}
LATENCIES = ("ttft", "tpot", "e2el")
COMM_SHARES = ("comm_exposed", "comm_busy")
COLLECTIVES = (
    "timed_collectives"  # the table of results that says what the calls of each operation took
)

MAX_BARS = 3000  # of the timeline, over the layouts of one view
MAX_STEPS = 3
SEEN = (
    1 / 2000
)  # the part of a window below which a gap between two stretches of compute cannot be seen
QUANTILES = np.linspace(0, 1, 101)
SAMPLES = 100  # of a cell's telemetry over time
DIGITS = 5

# Telemetry: title, unit, column, and what one of its unit is in that of the chart.
GAUGES = (
    ("GPU utilisation", "%", "gpu_utilization_pct", 1.0),
    ("Power", "W", "power_w", 1.0),
    ("GPU memory used", "GB", "memory_used_bytes", 1e-9),
    ("SM clock", "MHz", "sm_clock_mhz", 1.0),
    ("Temperature", "°C", "temperature_c", 1.0),
    ("Memory utilisation", "%", "memory_utilization_pct", 1.0),
)
CPU_GAUGES = (
    ("Processor use of a worker", "% of a core", "process_cpu_pct", 1.0),
    ("Main memory of a worker", "GB", "process_rss_bytes", 1e-9),
)


def key(row: Row) -> tuple[Any, ...]:
    """What names a cell; an older result may lack some of it."""
    return tuple(row.get(name) or MISSING for name in CELL_KEY)


def layout_names(rows: Sequence[Row]) -> dict[tuple[Any, ...], str]:
    """Cell -> what its layout is called: the strategy, with the engine and number format only where
    they differ within a model."""
    models = grouped(rows, lambda row: row["model"]).values()
    return {
        key(row): name for peers in models for row, name in zip(peers, names_of(peers), strict=True)
    }


def natural(name: str) -> list[Any]:
    """Sorts tp2 before tp10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


# -- cells


def cells(
    comparison: Sequence[Row], parts: Sequence[Row] = (), steps: pa.Table | None = None
) -> list[dict[str, Any]]:
    """A row per cell: what the charts over cells draw.

    parts: the steps of the observed runs taken apart. steps: those of the timed runs, for how many
    micro-batches are in flight.
    """
    names = layout_names(comparison)
    lengths, in_flight = step_lengths(parts), micro_batches(steps)
    between = token_times(parts, in_flight)
    rows = []
    for row in comparison:
        cell = key(row)
        found = {
            phase: rounded(ms)
            for phase in PHASES
            if (ms := lengths.get((*cell, phase))) is not None
        }
        together = max(
            (number for (name, _), number in in_flight.items() if name == cell), default=None
        )
        rows.append(
            {
                **_cell(row, names[cell]),
                "step_ms": found,
                "token_ms": rounded(between.get(cell)),
                "micro_batches": together,
            }
        )
    return rows


def _cell(row: Row, layout: str) -> dict[str, Any]:
    good = row["status"] == COMPLETED
    tpot = row["median_tpot_ms"] if good else None
    phases = {phase: _parts(row, prefix) for phase, prefix in PHASES.items()}
    return {
        "experiment": row["experiment"],
        "scenario": row["scenario"],
        "concurrency": row["max_concurrency"],
        "layout": layout,
        "gpus": row["num_gpus"],
        "throughput": rounded(row["output_throughput"]) if good else None,
        "low": rounded(not_negative(row["output_throughput_ci_low"])) if good else None,
        "high": rounded(row["output_throughput_ci_high"]) if good else None,
        "best": rounded(row["output_throughput_best"]) if good else None,
        "runs": row["num_runs"],
        "per_gpu": rounded(row["output_throughput_per_gpu"]) if good else None,
        "per_user": rounded(1e3 / tpot) if tpot else None,
        "ttft": rounded(row["median_ttft_ms"]) if good else None,
        "tpot": rounded(tpot),
        "status": row["status"],
        "bound": rounded(row.get("bound_output_throughput")),
        "bound_pct": rounded(row.get("bound_pct")),
        "bound_source": row.get("bound_source"),
        "timed_ms": rounded(row["decode_ms_per_step"]) if good else None,
        "parts": {phase: values for phase, values in phases.items() if good and values},
        "worst": {
            phase: {part: rounded(row.get(f"{PHASES[phase]}{part}_pct_worst")) for part in values}
            for phase, values in phases.items()
        },
        "comm": {phase: _comm(row, prefix) for phase, prefix in PHASES.items()},
    }


def not_negative(value: float | None) -> float | None:
    """The lower end of an interval of what cannot be below 0; Student's knows nothing of that."""
    return None if value is None else max(0.0, value)


def with_bounds(comparison: Sequence[Row], summary: Sequence[Row]) -> list[dict[str, Any]]:
    """The comparison in which cells without a valid run have the bound that their runs were held
    against."""
    runs = grouped((run for run in summary if run["status"] == INVALID), key)
    rows = []
    for row in comparison:
        mine = runs.get(key(row), []) if row["status"] == INVALID else []
        known = {
            name: [run[name] for run in mine if run.get(name) is not None]
            for name in bounds.FIGURES
        }
        rows.append(
            {**row, **{name: statistics.fmean(values) for name, values in known.items() if values}}
        )
    return rows


def _parts(row: Row, prefix: str) -> dict[str, float | None]:
    """Shares of a step in percent; {} where it was not observed. An older result knows only a part
    of it."""
    found = {part: row.get(f"{prefix}{part}_pct") for part in PARTS}
    if found["compute"] is not None:
        return {part: rounded(value) for part, value in found.items() if value is not None}
    exposed, bubble = row.get(f"{prefix}comm_exposed_pct"), row.get(f"{prefix}bubble_pct") or 0.0
    if exposed is None:
        return {}
    return {
        "comm_exposed": rounded(exposed),
        "bubble": rounded(bubble),
        "rest": rounded(max(0.0, 100.0 - exposed - bubble)),
    }


def _comm(row: Row, prefix: str) -> dict[str, float | None]:
    """All communication in percent of a step, as a mean over ranks and of the worst one."""
    columns = [f"{name}_pct{end}" for name in COMM_SHARES for end in ("", "_worst")]
    return {name: rounded(row.get(prefix + name)) for name in columns}


def step_lengths(parts: Sequence[Row]) -> dict[tuple[Any, ...], float]:
    """(cell, phase) -> milliseconds of a step, mean over ranks."""
    groups = grouped(
        (row for row in parts if row.get("step_ms")), lambda row: (*key(row), row["phase"])
    )
    return {name: float(np.mean([row["step_ms"] for row in rows])) for name, rows in groups.items()}


def token_times(
    parts: Sequence[Row], in_flight: Mapping[tuple[Any, int], int]
) -> dict[tuple[Any, ...], float]:
    """Cell -> milliseconds from one token of a request to its next, mean over ranks.

    A rank takes the micro-batches in flight in turn, so that time is as many of its decode steps; a
    cell of which their number is not known for every rank is left out.
    """
    groups = grouped((row for row in parts if row.get("step_ms") and row["phase"] == "decode"), key)
    return {
        cell: float(np.mean([row["step_ms"] * in_flight[cell, row["rank"]] for row in rows]))
        for cell, rows in groups.items()
        if all((cell, row["rank"]) in in_flight for row in rows)
    }


def micro_batches(steps: pa.Table | None) -> dict[tuple[Any, int], int]:
    """(cell, rank) -> micro-batches that it decodes in turn.

    steps: of the timed runs. There is one for each stage, or for each request of the replica where
    these are fewer.
    """
    if steps is None:
        return {}
    names = [name for name in CELL_KEY if name in steps.column_names]
    decode = steps.filter(pc.equal(steps["phase"], "decode"))
    counted = decode.group_by([*names, "rank"]).aggregate([("micro_batch", "count_distinct")])
    return {
        (key(row), row["rank"]): row["micro_batch_count_distinct"] for row in counted.to_pylist()
    }


# -- communication by operation


def communication(
    collectives: pa.Table | None, names: Mapping[tuple[Any, ...], str]
) -> list[dict[str, Any]]:
    """Per cell, phase, operation and group what its calls took (us) and reached (GB/s): mean and
    worst over ranks.

    calls: of one rank. bytes: of a call, as the message is counted. None where it was not observed.
    """
    if collectives is None:
        return []
    known = [
        _per_call(row) for row in collectives.to_pylist() if key(row) in names and row["calls"]
    ]
    groups = grouped(
        known, lambda row: (key(row), row["phase"], row["op"], row["axis"], row.get("group_size"))
    )
    return [
        {
            **view(cell, names),
            "phase": phase,
            "op": op,
            "axis": axis,
            "group_size": size,
            "calls": rounded(_of(statistics.fmean, rows, "calls")),
            "bytes_per_call": rounded(_of(statistics.fmean, rows, "bytes_per_call")),
            **{
                f"{name}{end}": rounded(_of(function, rows, name))
                for name, worst in (
                    ("transfer_us", max),
                    ("wait_us", max),
                    ("algbw", min),
                    ("busbw", min),
                )
                for end, function in (("", statistics.fmean), ("_worst", worst))
            },
        }
        for (cell, phase, op, axis, size), rows in groups.items()
    ]


def _per_call(row: Row) -> Row:
    return {**row, "bytes_per_call": None if row["bytes"] is None else row["bytes"] / row["calls"]}


def _of(function: Callable[[list[float]], float], rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return function(values) if values else None


# -- latencies


def latencies(
    requests: pa.Table | None, names: Mapping[tuple[Any, ...], str]
) -> list[dict[str, Any]]:
    """Per cell and latency the quantiles 0, 1% ... 100% in ms over the requests of all runs."""
    if requests is None:
        return []
    values = request_latencies(requests)
    rows = []
    for cell, indices in by_cell(requests).items():
        for name in LATENCIES:
            mine = values[name][indices]
            mine = mine[~np.isnan(mine)]
            if cell in names and mine.size:
                quantiles = compact(np.quantile(mine, QUANTILES))
                rows.append(
                    {
                        **view(cell, names),
                        "metric": name,
                        "requests": int(mine.size),
                        "q": quantiles,
                    }
                )
    return rows


def request_latencies(requests: pa.Table) -> dict[str, np.ndarray]:
    """Of each request in ms, NaN where it made too few tokens."""
    column = requests.column("token_times_s").combine_chunks()
    offsets = np.asarray(column.offsets)
    times = np.append(np.asarray(column.values, dtype=float), np.nan)
    counts = np.diff(offsets)
    first = np.where(counts > 0, times[offsets[:-1]], np.nan)
    last = np.where(counts > 0, times[offsets[1:] - 1], np.nan)
    arrival = np.asarray(requests.column("arrival_s"), dtype=float)
    tpot = np.where(counts > 1, (last - first) / np.maximum(counts - 1, 1), np.nan)
    return {"ttft": 1e3 * (first - arrival), "tpot": 1e3 * tpot, "e2el": 1e3 * (last - arrival)}


# -- the timeline of ranks


def timeline(spans: pa.Table | None, names: Mapping[tuple[Any, ...], str]) -> list[dict[str, Any]]:
    """Per cell a few decode steps: [rank, step, kind, start, length] in us from the first of them;
    kind indexes "kinds"."""
    if spans is None:
        return []
    chosen = {cell: indices for cell, indices in by_cell(spans).items() if cell in names}
    crowd = grouped(chosen, _view_of)
    return [
        {
            **view(cell, names),
            **window(spans.take(indices).to_pylist(), MAX_BARS // len(crowd[_view_of(cell)])),
        }
        for cell, indices in chosen.items()
    ]


def window(rows: Sequence[Row], budget: int) -> dict[str, Any]:
    """At most `budget` bars out of the last steps of one cell: fewer steps, then a shorter time,
    until they fit."""
    decode = [row for row in rows if row["phase"] == "decode"] or list(rows)
    steps = sorted({row["step"] for row in decode})
    for count in range(min(MAX_STEPS, len(steps)), 0, -1):
        bars = merged([row for row in decode if row["step"] in steps[-count:]])
        if len(bars) <= budget:
            break
    bars.sort(key=lambda bar: bar[3])
    cut = len(bars) > budget
    if cut:
        bars = [bar for bar in bars if bar[3] < bars[budget][3]]
    origin = bars[0][3] if bars else 0.0
    kinds = sorted({bar[2] for bar in bars})
    short = [
        [rank, step, kinds.index(kind), round(start - origin, 1), round(end - start, 1)]
        for rank, step, kind, start, end in bars
    ]
    return {"kinds": kinds, "bars": short, "cut": cut}


def merged(rows: Sequence[Row]) -> list[tuple[int, int, str, float, float]]:
    """(rank, step, kind, start, end), stretches of compute with no visible gap between them as
    one."""
    if not rows:
        return []
    unseen = SEEN * (max(row["end_us"] for row in rows) - min(row["start_us"] for row in rows))
    out: list[tuple[int, int, str, float, float]] = []
    for row in sorted(rows, key=lambda row: (row["rank"], row["start_us"])):
        bar = (row["rank"], row["step"], row["kind"], row["start_us"], row["end_us"])
        before = out[-1] if out else None
        if (
            before
            and before[:3] == bar[:3]
            and bar[2] == "compute"
            and bar[3] - before[4] <= unseen
        ):
            out[-1] = (*before[:4], max(before[4], bar[4]))
        else:
            out.append(bar)
    return out


# -- memory and telemetry


def memory(summary: Sequence[Row], names: Mapping[tuple[Any, ...], str]) -> list[dict[str, Any]]:
    """Per cell and rank in GB: weights and KV where they are known per rank, and the rest of the
    peak."""
    rows = []
    done = (
        row
        for row in summary
        if row["status"] == COMPLETED and row["peak_memory_bytes_per_rank"] and key(row) in names
    )
    for cell, runs in grouped(done, key).items():
        run = max(runs, key=lambda run: max(run["peak_memory_bytes_per_rank"]))
        for rank, peak in enumerate(run["peak_memory_bytes_per_rank"]):
            parts = {
                name: _nth(run.get(f"{name}_bytes_per_rank"), rank) for name in ("weight", "kv")
            }
            known = sum(value or 0 for value in parts.values())
            gigabytes = {
                name: rounded(value / 1e9) if value else None for name, value in parts.items()
            }
            rest = max(0, peak - known)
            rows.append(
                {
                    **view(cell, names),
                    "rank": rank,
                    "peak": rounded(peak / 1e9),
                    "rest": rounded(rest / 1e9),
                    **gigabytes,
                }
            )
    return rows


def telemetry(
    samples: pa.Table | None, names: Mapping[tuple[Any, ...], str]
) -> list[dict[str, Any]]:
    """Per cell and gauge over the time of one run: mean, least and greatest over its devices and
    ranks."""
    if samples is None:
        return []
    seconds, runs = (
        np.asarray(samples.column("time_s"), dtype=float),
        np.asarray(samples.column("run")),
    )
    ranks = np.asarray(samples.column("rank"))
    gauges = GAUGES if samples.column("gpu").null_count < samples.num_rows else CPU_GAUGES
    columns = {
        name: np.asarray(samples.column(name).cast(pa.float64()).fill_null(np.nan))
        for *_, name, _ in gauges
    }
    rows = []
    for cell, indices in by_cell(samples).items():
        mine = indices[(runs[indices] == runs[indices].min()) & ~np.isnan(seconds[indices])]
        for title, unit, name, scale in gauges:
            if cell in names and mine.size and not np.isnan(columns[name][mine]).all():
                shown = binned(
                    seconds[mine], scale * columns[name][mine], len(np.unique(ranks[mine]))
                )
                rows.append({**view(cell, names), "gauge": title, "unit": unit, **shown})
    return rows


def binned(seconds: np.ndarray, values: np.ndarray, devices: int) -> dict[str, list[float | None]]:
    """Mean, least and greatest of the values in equal stretches of time, at most SAMPLES, each long
    enough for all `devices`."""
    known = ~np.isnan(values)
    seconds, values = seconds[known], values[known]
    edges = np.linspace(
        seconds.min(), seconds.max(), 1 + max(1, min(SAMPLES, len(values) // devices))
    )
    index = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, len(edges) - 2)
    found = [(position, values[index == position]) for position in np.unique(index)]
    return {
        "s": compact((edges[position] + edges[position + 1]) / 2 for position, _ in found),
        "mean": compact(inside.mean() for _, inside in found),
        "low": compact(inside.min() for _, inside in found),
        "high": compact(inside.max() for _, inside in found),
    }


# -- small things


def view(cell: tuple[Any, ...], names: Mapping[tuple[Any, ...], str]) -> dict[str, Any]:
    """What the page selects by."""
    row = dict(zip(CELL_KEY, cell, strict=True))
    return {
        "experiment": row["experiment"],
        "scenario": row["scenario"],
        "concurrency": row["max_concurrency"],
        "layout": names[cell],
    }


def _view_of(cell: tuple[Any, ...]) -> tuple[Any, ...]:
    row = dict(zip(CELL_KEY, cell, strict=True))
    return row["experiment"], row["scenario"], row["max_concurrency"]


def by_cell(table: pa.Table) -> dict[tuple[Any, ...], np.ndarray]:
    """Cell -> its rows in the table."""
    known = table.column_names
    columns = [
        table.column(name).to_pylist() if name in known else [MISSING] * table.num_rows
        for name in CELL_KEY
    ]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, cell in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(value or MISSING for value in cell), []).append(index)
    return {cell: np.asarray(indices) for cell, indices in groups.items()}


def grouped(rows: Iterable[T], name: Callable[[T], Any]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def rounded(value: float | None) -> float | None:
    """To five digits: more than any of it is known to, and less to store."""
    return None if value is None or value != value else float(f"{value:.{DIGITS}g}")


def compact(values: Iterable[float]) -> list[float | None]:
    return [rounded(float(value)) for value in values]


def _nth(values: Sequence[Any] | None, index: int) -> Any:
    return values[index] if values and index < len(values) else None
