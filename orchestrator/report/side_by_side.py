"""The comparison on the page: its columns, its rows by load, and what is said below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.analysis import clocks, crosscheck, outputs
from orchestrator.analysis.comparing.compare import Comparison, outputs_of
from orchestrator.analysis.comparing.rounds import Load, completed, load_of
from orchestrator.analysis.roofline import CALIBRATED, DATASHEET
from orchestrator.analysis.summary import Summary
from orchestrator.report.charts.cells import not_negative
from orchestrator.report.charts.views import Names
from orchestrator.report.text import EN_DASH, figure
from orchestrator.store.schema import COMPLETED, INVALID
from orchestrator.units import format_bytes
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """A column of the comparison as it is shown. help: what it means. show: its text for a cell, ""
    where it is unknown."""

    title: str
    help: str
    show: Callable[[Comparison], str]


@dataclass(frozen=True, slots=True)
class Line:
    """A cell in the table. relative: to the best mean of the same load. best: whether it is not
    shown to be worse. figures: a text a column; none where the cell failed."""

    layout: str
    status: str
    reason: str | None
    reason_status: str | None
    relative: float | None
    best: bool
    figures: Sequence[str]


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of one load. notes: what is said below them."""

    experiment: str
    scenario: str
    concurrency: int
    title: str
    notes: Sequence[str]
    rows: Sequence[Line]


def _interval(one: Comparison) -> str:
    low, high = not_negative(one.spread.ci_low), one.spread.ci_high
    return "" if low is None or high is None else f"{figure(low)}{EN_DASH}{figure(high)}"


def _best_run(one: Comparison) -> str:
    return "" if one.num_runs < 2 else figure(one.spread.best)


def _memory(one: Comparison) -> str:
    peak = one.memory.peak_memory_bytes
    return format_bytes(peak) if peak else ""


BOUND, OF_BOUND = "bound", "of bound"
COLUMNS = (
    ShownColumn(
        "GPUs",
        "GPUs of the layout",
        lambda one: "" if one.conditions.num_gpus is None else str(one.conditions.num_gpus),
    ),
    ShownColumn(
        "tok/s",
        "generated tokens per second, reading the prompts included; mean of the starts",
        lambda one: figure(one.throughput.output_throughput),
    ),
    ShownColumn("interval", "95% interval of that mean", _interval),
    ShownColumn("best run", "tok/s of the best run", _best_run),
    ShownColumn(
        "steady tok/s",
        "tok/s while as many requests are in flight as may be: without ramp-up and drain",
        lambda one: figure(one.steady.steady_output_throughput),
    ),
    ShownColumn(
        "tok/s/GPU", "tok/s per GPU", lambda one: figure(one.throughput.output_throughput_per_gpu)
    ),
    ShownColumn(
        "TTFT ms", "time to first token, median", lambda one: figure(one.latency.ttft.median)
    ),
    ShownColumn(
        "TPOT ms",
        "time per output token after the first, median",
        lambda one: figure(one.latency.tpot.median),
    ),
    ShownColumn(
        "p99 TPOT", "TPOT, 99th percentile, in ms", lambda one: figure(one.latency.tpot.p99)
    ),
    ShownColumn(
        "p99 delay",
        "from scheduled arrival to being let in, 99th percentile, ms",
        lambda one: figure(one.arrivals.p99_schedule_delay_ms),
    ),
    ShownColumn(
        "comm",
        "share of a decode step in which data move, or wait for the last rank, and nothing "
        "computes",
        lambda one: figure(one.step.decode.comm_exposed.pct, "%"),
    ),
    ShownColumn(
        "bubble",
        "share of a decode step spent waiting for another pipeline stage",
        lambda one: figure(one.step.decode.bubble.pct, "%"),
    ),
    ShownColumn(
        "goodput",
        "requests per second that met the objective",
        lambda one: figure(one.goodput.request_goodput),
    ),
    ShownColumn(
        BOUND,
        "tok/s that memory and arithmetic allow this layout if communication takes no time",
        lambda one: figure(one.bounds.bound_output_throughput),
    ),
    ShownColumn(
        OF_BOUND, "tok/s in percent of the bound", lambda one: figure(one.bounds.bound_pct, "%")
    ),
    ShownColumn(
        "MFU",
        "model FLOPs utilisation: the model's own operations, in percent of the arithmetic rate in "
        "the data sheet",
        lambda one: figure(one.bounds.model_flops_utilization, "%"),
    ),
    ShownColumn(
        "MBU",
        "memory bandwidth utilisation: weights and keys and values read in a decode step, in "
        "percent of the rate in the data sheet",
        lambda one: figure(one.bounds.memory_bandwidth_utilization, "%"),
    ),
    ShownColumn(
        "J/token",
        "energy of the GPUs per generated token",
        lambda one: figure(one.energy.joules_per_output_token),
    ),
    ShownColumn("memory", "peak of the fullest rank", _memory),
    ShownColumn("starts", "starts with a completed run", lambda one: str(one.num_starts)),
    ShownColumn("runs", "completed runs, of all starts", lambda one: str(one.num_runs)),
)


def known_columns(comparison: Sequence[Comparison]) -> list[ShownColumn]:
    """The columns that have a value for any cell."""
    return [column for column in COLUMNS if any(column.show(one) for one in comparison)]


def groups(comparison: Sequence[Comparison], runs: Sequence[Summary], names: Names) -> list[Group]:
    """The table: rows by experiment, scenario and concurrency."""
    columns = known_columns(comparison)
    done = grouped(completed(runs), lambda run: run.cell)

    def group(load: Load, cells: Sequence[Comparison]) -> Group:
        of_layout = {names[one.cell]: done.get(one.cell, []) for one in cells}
        return Group(
            load.experiment,
            load.scenario,
            load.max_concurrency,
            f"{load.max_concurrency} concurrent",
            [
                *_tokens(cells, names),
                *clocks.sentences({names[one.cell]: one.clocks for one in cells}),
                *_energy(of_layout),
                *crosscheck.sentences({names[one.cell]: one.crosscheck for one in cells}),
            ],
            [_line(one, names[one.cell], columns) for one in cells],
        )

    loads = grouped(comparison, lambda one: load_of(one.cell))
    return [group(load, cells) for load, cells in loads.items()]


def _line(one: Comparison, layout: str, columns: Sequence[ShownColumn]) -> Line:
    relative = one.relative_to_best if one.status == COMPLETED else None
    figures = _figures(one, columns)
    best = one.in_best_set is True
    return Line(layout, one.status, one.reason, one.reason_status, relative, best, figures)


def _figures(one: Comparison, columns: Sequence[ShownColumn]) -> list[str]:
    """What the columns say of a cell: of an invalid one its bound alone, of a failed one
    nothing."""
    if one.status == INVALID:
        return [column.show(one) if column.title in (BOUND, OF_BOUND) else "" for column in columns]
    return [column.show(one) for column in columns] if one.status == COMPLETED else []


def _tokens(cells: Sequence[Comparison], names: Names) -> Iterator[str]:
    """Which layouts made the same tokens, by their names on the page."""
    found = zip(outputs_of(cells), cells, strict=True)
    said = outputs.sentence([replace(made, name=names[one.cell]) for made, one in found])
    if said:
        yield said


def _energy(runs: Mapping[str, Sequence[Summary]]) -> Iterator[str]:
    """Why energy is not shown. runs: the completed ones of each layout."""
    for layout, mine in runs.items():
        doubtful = [run for run in mine if run.energy.power_valid is False]
        if doubtful:
            reasons = dict.fromkeys(run.energy.power_reasons or "" for run in doubtful)
            yield f"Energy of {layout}: {_of_runs(doubtful, mine)} left out ({'; '.join(reasons)})."


def _of_runs(some: Sequence[Summary], every: Sequence[Summary]) -> str:
    if len(some) < len(every):
        return f"{len(some)} of {len(every)} runs"
    return "its run" if len(every) == 1 else f"all {len(every)} runs"


SOURCES = {
    CALIBRATED: "from rates measured on these devices",
    DATASHEET: "from the devices' data sheet",
}


def bound_sources(comparison: Sequence[Comparison]) -> str:
    """Where the rates behind the bounds come from; empty where there are none."""
    bounds = [one.bounds for one in comparison if one.bounds.bound_output_throughput]
    sources = dict.fromkeys(one.bound_source for one in bounds)
    return " or ".join(SOURCES.get(source, f"from {source}") for source in sources if source)
