"""The comparison: from the summary of every run to a row per cell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from orchestrator.analysis.comparing.confidence import spread
from orchestrator.analysis.energy import Energy
from orchestrator.analysis.goodput import Goodput
from orchestrator.analysis.outputs import CellOutput
from orchestrator.analysis.summary import Figures, Observed, Summary
from orchestrator.store.schema import COMPLETED, FAILED, INVALID, CellKey
from workers.rows import Column, OverRuns, Table, column, group, grouped, nothing, reduced, row

FUNCTIONS: Mapping[OverRuns, Callable[[list[Any]], Any]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "first": lambda values: values[0],
    "max": max,
}
# Of runs without a result: what each of them says alike is known, and nothing else.
SAME_FOR_ALL: Mapping[OverRuns, Callable[[list[Any]], Any]] = {
    **dict.fromkeys(FUNCTIONS, lambda values: None),
    "first": FUNCTIONS["first"],
}


class Load(NamedTuple):
    """What cells must agree in for their layouts to be compared."""

    experiment: str
    model: str
    scenario: str
    max_concurrency: int


@row
class ThroughputSpread:
    """How far the runs of a cell lie apart in output_throughput."""

    std: float | None = column("standard deviation of the runs, as a sample", "tokens/s")
    cv: float | None = column("coefficient of variation of the runs", "1", formula="std / mean")
    ci_low: float | None = column(
        "lower end of the mean's 95% interval, from two runs on", "tokens/s", source="Student"
    )
    ci_high: float | None = column("upper end of it", "tokens/s", source="Student")
    best: float | None = column("the best run", "tokens/s")


@row
class Standing:
    """What became of a cell, and how it stands among the layouts of the same load."""

    cell: CellKey = group()
    status: str = column("completed where a run is; else failed or invalid")
    reason: str | None = column("of the last run that failed or is invalid")
    reason_status: str | None = column("which of the two that run is")
    num_runs: int = column("runs that are completed", "1")
    num_turns: int | None = column(
        "turns that these were made in; as many as runs where layouts took turns", "1"
    )
    relative_to_best: float | None = column(
        "output_throughput over that of the best layout of the same load", "1"
    )
    spread: ThroughputSpread = group("output_throughput_{}")
    output_digest: str | None = column("of every run; null where they differ")
    distinct_outputs: int = column("different outputs that its runs made", "1")


@row
class Comparison(Observed, Figures, Standing):
    """One cell. Its figures are over its completed runs.

    Rates, energy and bounds are means, latencies and other times medians of what each run says of
    its requests: p99_ttft_ms is the median of the runs' 99th percentiles.
    """


FIGURES = {field.name for kind in (Figures, Observed) for field in fields(kind)}
COMPARED = Table("comparison", Comparison, lambda one: _is_compared(one))


def _is_compared(one: Column) -> bool:
    return one.path[0] not in FIGURES or one.over_runs is not None


def load_of(cell: CellKey) -> Load:
    """What a cell is compared within."""
    return Load(cell.experiment, cell.model, cell.scenario, cell.max_concurrency)


def names_of(cells: Sequence[CellKey]) -> list[str]:
    """What to call cells that did the same work: the layout, with engine, dtype and quantization
    only where these differ."""
    several_engines = len({cell.engine for cell in cells}) > 1
    several_dtypes = len({dtype_of(cell) for cell in cells}) > 1

    def name(cell: CellKey) -> str:
        engine = [cell.engine] if several_engines else []
        return " ".join([cell.strategy, *engine, *([dtype_of(cell)] if several_dtypes else [])])

    return [name(cell) for cell in cells]


def outputs_of(cells: Sequence[Comparison]) -> list[CellOutput]:
    """What each of the cells that did the same work made, by its name among them."""
    names = names_of([one.cell for one in cells])
    return [
        CellOutput(name, one.cell.dtype, one.output_digest, one.distinct_outputs)
        for name, one in zip(names, cells, strict=True)
    ]


def dtype_of(cell: CellKey) -> str:
    """The dtype of a cell, with its quantization if there is any."""
    return cell.dtype if cell.quantization == "none" else f"{cell.dtype}/{cell.quantization}"


def run_order(cells: Sequence[Comparison]) -> str:
    """In which order the runs of several layouts were made, as a sentence; empty where that says
    nothing."""
    several = [one for one in cells if one.num_runs > 1]
    in_turns = [one for one in several if one.num_turns == one.num_runs]
    if len({one.cell.strategy for one in several}) < 2:
        return ""
    if len(in_turns) == len(several):
        return (
            "Layouts took turns, run by run: their ratios are of pairs of runs from the same turn."
        )
    which = "Some runs" if in_turns else "The runs"
    return (
        f"{which} of a layout follow each other, without turns: if the machine becomes slower "
        "meanwhile, that looks like a difference between layouts."
    )


def whole(runs: Iterable[Summary]) -> list[Summary]:
    """The runs that nothing was taken out of: those of an ablation are no results of their
    layout."""
    return [run for run in runs if run.cell.ablation == "none"]


def completed(runs: Iterable[Summary]) -> list[Summary]:
    """The runs that have a result."""
    return [run for run in runs if run.status == COMPLETED]


def with_valid_power(runs: Iterable[Summary]) -> list[Summary]:
    """The completed runs whose energy may be set against another's."""
    return [run for run in completed(runs) if run.energy.power_valid]


def held_to_one_level(runs: Iterable[Summary]) -> list[Summary]:
    """The completed runs, if all were held to the same service levels; else none."""
    done = completed(runs)
    return done if len({run.goodput.goodput for run in done}) == 1 else []


def compare(runs: Iterable[Summary]) -> list[Comparison]:
    """A row per cell of an experiment, by model, scenario and concurrency; within these the best
    layout first, failed ones last.

    A cell that no run completed stays, as "failed" or "invalid".
    """
    cells = [_cell(mine) for mine in grouped(whole(runs), lambda run: run.cell).values()]
    cells.sort(key=_rank)
    best = {
        load: max(one.throughput.output_throughput or 0.0 for one in peers)
        for load, peers in grouped(cells, lambda one: load_of(one.cell)).items()
    }
    return [replace(one, relative_to_best=_over(one, best[load_of(one.cell)])) for one in cells]


def _rank(one: Comparison) -> tuple[object, ...]:
    reached = one.throughput.output_throughput or 0.0
    return *load_of(one.cell), -reached, one.cell.strategy, one.cell.engine


def _over(one: Comparison, best: float) -> float | None:
    reached = one.throughput.output_throughput
    return reached / best if reached and best else None


def _cell(runs: Sequence[Summary]) -> Comparison:
    done = completed(runs)
    bad = [run for run in runs if run.status in (FAILED, INVALID)]
    turns = {run.conditions.block for run in done}
    digests = {run.output_digest for run in done if run.output_digest}
    return Comparison(
        cell=runs[0].cell,
        status=COMPLETED if done else bad[-1].status,
        reason=bad[-1].reason if bad else None,
        reason_status=bad[-1].status if bad else None,
        num_runs=len(done),
        num_turns=len(turns),
        relative_to_best=None,
        spread=_spread(done),
        output_digest=next(iter(digests)) if len(digests) == 1 else None,
        distinct_outputs=len(digests),
        **_figures(runs),
    )


def _spread(done: Sequence[Summary]) -> ThroughputSpread:
    known = [run.throughput.output_throughput for run in done]
    reached = [one for one in known if one is not None]
    found = spread(reached)
    if found is None:
        return nothing(ThroughputSpread)
    return ThroughputSpread(
        std=found.std, cv=found.cv, ci_low=found.ci_low, ci_high=found.ci_high, best=max(reached)
    )


def _figures(runs: Sequence[Summary]) -> dict[str, Any]:
    """Every group of figures, over the runs that count for it.

    A cell without a completed run has only the figures that are the same for every run.
    """
    done = completed(runs)
    counted, functions = (done, FUNCTIONS) if done else (runs, SAME_FOR_ALL)
    out: dict[str, Any] = {}
    for field in (*fields(Figures), *fields(Observed)):
        groups = [getattr(run, field.name) for run in counted]
        out[field.name] = reduced(type(groups[0]), groups, functions)
    energies = [run.energy for run in with_valid_power(runs)]
    goodputs = [run.goodput for run in held_to_one_level(runs)]
    return out | {
        "energy": reduced(Energy, energies, FUNCTIONS),
        "goodput": reduced(Goodput, goodputs, FUNCTIONS),
    }
