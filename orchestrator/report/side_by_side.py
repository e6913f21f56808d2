"""The comparison on the page: its columns, its rows by load, and what is to be said below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.analysis import outputs
from orchestrator.analysis.bounds import CALIBRATED, DATASHEET
from orchestrator.analysis.metrics import COMPLETED, INVALID
from orchestrator.report import figures
from orchestrator.report.figures import Row
from orchestrator.units import format_bytes


class Column:
    """A column of the comparison: its title, what it means, and what it shows of a row, "" where it
    is unknown."""

    def __init__(self, title: str, help: str, show: Callable[[Row], str]) -> None:
        self.title, self.help, self.show = title, help, show


def number(value: float | None) -> str:
    """With three digits or more: 2,111 or 211 or 21.1 or 2.11."""
    if not value:
        return "" if value is None else "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _figure(name: str, unit: str = "") -> Callable[[Row], str]:
    return lambda row: "" if row.get(name) is None else number(row[name]) + unit


def _interval(row: Row) -> str:
    low, high = (
        figures.not_negative(row["output_throughput_ci_low"]),
        row["output_throughput_ci_high"],
    )
    return "" if low is None or high is None else f"{number(low)}\u2013{number(high)}"


def _best_run(row: Row) -> str:
    return "" if row["num_runs"] < 2 else _figure("output_throughput_best")(row)


def _memory(row: Row) -> str:
    return format_bytes(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else ""


BOUND, OF_BOUND = "bound", "of bound"
COLUMNS = (
    Column(
        "GPUs",
        "GPUs of the layout",
        lambda row: "" if row["num_gpus"] is None else str(row["num_gpus"]),
    ),
    Column(
        "tok/s",
        "generated tokens per second, reading the prompts included; mean of the runs",
        _figure("output_throughput"),
    ),
    Column("interval", "95% interval of that mean", _interval),
    Column("best run", "tok/s of the best run", _best_run),
    Column(
        "steady tok/s",
        "tok/s while all slots are busy: without ramp-up and drain",
        _figure("steady_output_throughput"),
    ),
    Column("tok/s/GPU", "tok/s per GPU", _figure("output_throughput_per_gpu")),
    Column("TTFT ms", "time to first token, median", _figure("median_ttft_ms")),
    Column("TPOT ms", "time per output token after the first, median", _figure("median_tpot_ms")),
    Column("p99 TPOT", "TPOT, 99th percentile, in ms", _figure("p99_tpot_ms")),
    Column(
        "p99 delay",
        "from scheduled arrival to being let in, 99th percentile, ms",
        _figure("p99_schedule_delay_ms"),
    ),
    Column(
        "comm",
        "share of a decode step in which data move, or wait for the last rank, and nothing "
        "computes",
        _figure("comm_exposed_pct", unit="%"),
    ),
    Column(
        "bubble",
        "share of a decode step spent waiting for another pipeline stage",
        _figure("bubble_pct", unit="%"),
    ),
    Column("goodput", "requests per second that met the objective", _figure("request_goodput")),
    Column(
        BOUND,
        "tok/s that memory and arithmetic allow this layout if communication takes no time",
        _figure("bound_output_throughput"),
    ),
    Column(OF_BOUND, "tok/s in percent of the bound", _figure("bound_pct", unit="%")),
    Column(
        "MFU",
        "model FLOPs utilisation: the model's own operations, in percent of the arithmetic rate",
        _figure("model_flops_utilization", unit="%"),
    ),
    Column(
        "MBU",
        "memory bandwidth utilisation: weights and keys and values read in a decode step, in "
        "percent of the rate",
        _figure("memory_bandwidth_utilization", unit="%"),
    ),
    Column("J/token", "energy of the GPUs per generated token", _figure("joules_per_output_token")),
    Column("memory", "peak of the fullest rank", _memory),
    Column("runs", "completed runs", lambda row: str(row["num_runs"])),
)


def known_columns(comparison: Sequence[Row]) -> list[Column]:
    """The columns of which anything is known."""
    return [column for column in COLUMNS if any(column.show(row) for row in comparison)]


def groups(
    comparison: Sequence[Row], summary: Sequence[Row], names: dict[tuple[Any, ...], str]
) -> list[dict[str, Any]]:
    """The table: rows by experiment, scenario and concurrency."""
    columns = known_columns(comparison)
    groups = figures.grouped(
        comparison, lambda row: (row["experiment"], row["scenario"], row["max_concurrency"])
    )
    runs = figures.grouped((row for row in summary if row["status"] == COMPLETED), figures.key)
    return [
        {
            "experiment": experiment,
            "scenario": scenario,
            "concurrency": concurrency,
            "title": f"{concurrency} concurrent",
            "notes": [
                *_tokens(rows, names),
                *_energy({names[figures.key(row)]: runs.get(figures.key(row), []) for row in rows}),
            ],
            "rows": [_line(row, names[figures.key(row)], columns) for row in rows],
        }
        for (experiment, scenario, concurrency), rows in groups.items()
    ]


def _line(row: Row, layout: str, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "layout": layout,
        "status": row["status"],
        "reason": row["reason"],
        "reason_status": row["reason_status"],
        "relative": row["relative_to_best"] if row["status"] == COMPLETED else None,
        "figures": _shown(row, columns),
    }


def _shown(row: Row, columns: Sequence[Column]) -> list[str]:
    """What the columns say of a row: of an invalid one its bound alone, of a failed one nothing."""
    if row["status"] == INVALID:
        return [column.show(row) if column.title in (BOUND, OF_BOUND) else "" for column in columns]
    return [column.show(row) for column in columns] if row["status"] == COMPLETED else []


def _tokens(rows: Sequence[Row], names: dict[tuple[Any, ...], str]) -> Iterator[str]:
    said = outputs.sentence([names[figures.key(row)] for row in rows], rows)
    if said:
        yield said


def _energy(runs: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Why energy is not told, and whether clocks were held down. runs: the completed ones of each
    layout."""
    for layout, mine in runs.items():
        doubtful = [run for run in mine if not run.get("power_valid") and _has_power(run)]
        if doubtful:
            reasons = dict.fromkeys(
                run.get("power_reasons") or "nobody checked its power" for run in doubtful
            )
            yield f"Energy of {layout}: {_of_runs(doubtful, mine)} left out ({'; '.join(reasons)})."
    held = {layout: [run for run in mine if run.get("throttled")] for layout, mine in runs.items()}
    slowed = [f"{layout} ({_of_runs(some, runs[layout])})" for layout, some in held.items() if some]
    if slowed:
        yield (
            "Clocks were held down, by the power limit, heat or a fault, under "
            f"{', '.join(slowed)}."
        )


def _has_power(run: Row) -> bool:
    return run.get("power_valid") is not None or run.get("joules_per_output_token") is not None


def _of_runs(some: Sequence[Row], every: Sequence[Row]) -> str:
    if len(some) < len(every):
        return f"{len(some)} of {len(every)} runs"
    return "its run" if len(every) == 1 else f"all {len(every)} runs"


SOURCES = {
    CALIBRATED: "from rates measured on these devices",
    DATASHEET: "from the devices' data sheet",
}


def bound_sources(comparison: Sequence[Row]) -> str:
    """Where the rates behind the bounds come from; empty where there are none."""
    sources = dict.fromkeys(
        row["bound_source"] for row in comparison if row.get("bound_output_throughput")
    )
    return " or ".join(SOURCES.get(source, f"from {source}") for source in sources if source)
