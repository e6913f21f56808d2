"""The comparison on the page: its rows by load, and what is said below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.analysis import crosscheck, goodput, outputs, samples
from orchestrator.analysis.comparing.best import Best
from orchestrator.analysis.comparing.compare import Comparison, outputs_of
from orchestrator.analysis.comparing.findings import Findings
from orchestrator.analysis.comparing.metrics import THROUGHPUT
from orchestrator.analysis.comparing.rounds import Load, completed, load_of
from orchestrator.analysis.roofline import CALIBRATED, DATASHEET
from orchestrator.analysis.summary import Summary
from orchestrator.report.charts import across_nodes, unshown
from orchestrator.report.charts.choices import load_in_words
from orchestrator.report.charts.views import Names
from orchestrator.report.shown_columns import OF_BOUND, ShownColumn, Statistics, known_columns
from orchestrator.store.schema import COMPLETED, INVALID
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class Line:
    """A cell in the table. relative: to the best mean of the same load. best: whether it is not
    shown to be worse. figures: a text a column, with what stands below it; none where the cell
    failed."""

    layout: str
    status: str
    reason: str | None
    reason_status: str | None
    relative: float | None
    best: bool
    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of one load. notes: what is said below them."""

    experiment: str
    scenario: str
    concurrency: int
    title: str
    notes: Sequence[str]
    rows: Sequence[Line]


def groups(found: Findings, runs: Sequence[Summary], names: Names) -> list[Group]:
    """The table: rows by experiment, scenario and concurrency."""
    columns = known_columns(found.comparison)
    known = {(one.cell, one.metric): one for one in found.statistics}
    fastest = {one.load: one for one in found.best if one.metric == THROUGHPUT.column}
    done = grouped(completed(runs), lambda run: run.cell)

    def group(load: Load, cells: Sequence[Comparison]) -> Group:
        mine = {names[one.cell]: done.get(one.cell, []) for one in cells}
        return Group(
            load.experiment,
            load.scenario,
            load.max_concurrency,
            load_in_words(cells[0]),
            [*_without_best(fastest.get(load), cells), *_notes(cells, names), *_energy(mine)],
            [_line(one, names[one.cell], columns, known) for one in cells],
        )

    loads = grouped(found.comparison, lambda one: load_of(one.cell))
    return [group(load, cells) for load, cells in loads.items()]


def _without_best(fastest: Best | None, cells: Sequence[Comparison]) -> Iterator[str]:
    """Why no row is marked as the best, where several have a result."""
    several = sum(one.status == COMPLETED for one in cells) > 1
    if several and fastest is not None and fastest.layouts is None and fastest.reason:
        yield f"Nothing is marked best: {fastest.reason}."


def _notes(cells: Sequence[Comparison], names: Names) -> Iterator[str]:
    """What is said of each layout that has a result."""
    named = {names[one.cell]: one for one in cells if one.status == COMPLETED}
    yield from _tokens(cells, names)
    yield from goodput.slo_sentences({name: one.slo for name, one in named.items()})
    yield from across_nodes.sentences(named)
    yield from unshown.sentences(named)
    yield from samples.clock_sentences({name: one.clocks for name, one in named.items()})
    yield from crosscheck.sentences({name: one.crosscheck for name, one in named.items()})


def _line(one: Comparison, layout: str, columns: Sequence[ShownColumn], known: Statistics) -> Line:
    relative = one.relative_to_best if one.status == COMPLETED else None
    figures = _figures(one, columns, known)
    best = one.in_best_set is True
    return Line(layout, one.status, one.reason, one.reason_status, relative, best, figures)


def _figures(
    one: Comparison, columns: Sequence[ShownColumn], known: Statistics
) -> list[tuple[str, str]]:
    """What the columns say of a cell: of an invalid one its bound alone, of a failed one
    nothing."""
    if one.status not in (COMPLETED, INVALID):
        return []
    is_known = one.status == COMPLETED
    return [
        column.pair(one, known) if is_known or column.title == OF_BOUND else ("", "")
        for column in columns
    ]


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
