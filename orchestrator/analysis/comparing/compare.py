"""The comparison: from the summary of every run to a row per cell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from orchestrator.analysis.comparing.best import leader_of, set_of
from orchestrator.analysis.comparing.confidence import spread
from orchestrator.analysis.comparing.metrics import METRICS, THROUGHPUT
from orchestrator.analysis.comparing.rounds import (
    Load,
    by_round,
    completed,
    held_to_one_level,
    held_to_one_slo,
    load_of,
    names_of,
    whole,
    with_valid_power,
)
from orchestrator.analysis.comparing.sentences import MORE
from orchestrator.analysis.comparing.verdicts import Ruling, rulings
from orchestrator.analysis.energy import Energy
from orchestrator.analysis.goodput import Goodput, Slo
from orchestrator.analysis.outputs import CellOutput
from orchestrator.analysis.summary import Figures, Observed, Summary
from orchestrator.store.schema import COMPLETED, FAILED, INVALID, CellKey
from workers.rows import Column, OverRuns, Table, column, group, grouped, nothing, reduced, row

FUNCTIONS: Mapping[OverRuns, Callable[[list[Any]], Any]] = {
    "mean": statistics.fmean,
    "first": lambda values: values[0],
    "max": max,
    "min": min,
}
# Of runs without a result: what each of them says alike is known, and nothing else.
SAME_FOR_ALL: Mapping[OverRuns, Callable[[list[Any]], Any]] = {
    **dict.fromkeys(FUNCTIONS, lambda values: None),
    "first": FUNCTIONS["first"],
}


@row
class ThroughputSpread:
    """How far the starts of a cell lie apart in output_throughput, and the runs inside them."""

    std: float | None = column(
        "standard deviation of the starts, as a sample; each start is the mean of its runs",
        "tokens/s",
    )
    cv_between: float | None = column(
        "coefficient of variation of the starts", "1", formula="std / mean"
    )
    cv_within: float | None = column(
        "coefficient of variation of the runs inside a start, pooled over starts; null where each "
        "has one run",
        "1",
    )
    ci_low: float | None = column(
        "lower end of the mean's 95% interval, from two starts on", "tokens/s", source="Student"
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
    num_starts: int = column("starts that have a completed run", "1")
    num_runs: int = column("runs that are completed, of all starts", "1")
    relative_to_best: float | None = column(
        "output_throughput over that of the layout with the best mean under the same load, over "
        "the rounds that both have",
        "1",
    )
    in_best_set: bool | None = column(
        "whether it is not shown to deliver less output_throughput than the layout with the best "
        "mean; null where nothing is shown, as with one start each"
    )
    spread: ThroughputSpread = group("output_throughput_{}")
    output_digest: str | None = column("of every run; null where they differ")
    distinct_outputs: int = column("different outputs that its runs made", "1")


@row
class Comparison(Observed, Figures, Standing):
    """One cell. Its figures are over its completed runs: the mean over the runs of a start, then
    over starts.

    Latencies are those of a run: p99_ttft_ms is the mean of the runs' 99th percentiles over their
    requests.
    """


FIGURES = {field.name for kind in (Figures, Observed) for field in fields(kind)}
COMPARED = Table("comparison", Comparison, lambda one: _is_compared(one))


def _is_compared(one: Column) -> bool:
    return one.path[0] not in FIGURES or one.over_runs is not None


def outputs_of(cells: Sequence[Comparison]) -> list[CellOutput]:
    """What each of the cells that did the same work made, by its name among them."""
    names = names_of([one.cell for one in cells])
    return [
        CellOutput(name, one.cell.dtype, one.output_digest, one.distinct_outputs)
        for name, one in zip(names, cells, strict=True)
    ]


def run_order(cells: Sequence[Comparison]) -> str:
    """What the repeats of several layouts are worth, as a sentence; empty where there are none."""
    if len({one.cell.strategy for one in cells if one.num_runs > 1}) < 2:
        return ""
    if any(one.num_starts > 1 for one in cells):
        return (
            "Layouts took turns, start by start: ratios are of starts of the same round. Intervals "
            "are at 95% each; the verdicts are corrected for their number."
        )
    return (
        "Every layout had one start. Its runs share whatever was fixed when its workers were "
        f"built, so they give no interval; {MORE} does."
    )


def compare(
    runs: Iterable[Summary],
    found: Sequence[Ruling] | None = None,
    objective: str = THROUGHPUT.objective,
) -> list[Comparison]:
    """A row per cell of an experiment, by model, scenario and concurrency; within these the best
    layout first, failed ones last.

    found: what is shown of these runs; None: it is worked out. objective: what the best is best
    for, by its first metric. A cell that no run completed stays, as "failed" or "invalid".
    """
    every = list(runs)
    standings = Standings(rulings(every) if found is None else found, objective)
    cells = [_cell(mine) for mine in grouped(whole(every), lambda run: run.cell).values()]
    cells.sort(key=lambda one: (*load_of(one.cell), *standings.place(one)))
    return [
        replace(
            one,
            relative_to_best=standings.relative_to_best(one),
            in_best_set=standings.in_best_set(one),
        )
        for one in cells
    ]


class Standings:
    """How each cell stands in its load. objective: what it is ordered by."""

    def __init__(self, found: Iterable[Ruling], objective: str) -> None:
        of_metric = {(one.field.load, one.field.metric.column): one for one in found}
        first = next(metric for metric in METRICS if metric.objective == objective)
        self._by_speed = {at[0]: r for at, r in of_metric.items() if at[1] == THROUGHPUT.column}
        self._ordering = {at[0]: r for at, r in of_metric.items() if at[1] == first.column}

    def place(self, one: Comparison) -> tuple[object, ...]:
        """Sorts the cells of a load; those without a figure come by their throughput, last."""
        places = (_place(found.get(load_of(one.cell)), one.cell) for found in self._both)
        return *places, one.cell.strategy, one.cell.engine

    def relative_to_best(self, one: Comparison) -> float | None:
        """Over the rounds that it has with the best; None without a figure."""
        ruling = self._by_speed.get(load_of(one.cell))
        order = ruling.field.order if ruling else ()
        mine = [side for side in order if side.cell == one.cell]
        return mine[0].over(order[0]) if mine and any(order[0].starts.values()) else None

    def in_best_set(self, one: Comparison) -> bool | None:
        """Whether it is among the best; None where nothing is shown, or it has no figure."""
        ruling = self._by_speed.get(load_of(one.cell))
        best = set_of(ruling) if ruling and leader_of(ruling, ruling.field) else None
        known = one.status == COMPLETED and best is not None
        return any(side.cell == one.cell for side in best or ()) if known else None

    @property
    def _both(self) -> tuple[Mapping[Load, Ruling], ...]:
        return self._ordering, self._by_speed


def _place(ruling: Ruling | None, cell: CellKey) -> int:
    order = [side.cell for side in ruling.field.order] if ruling else []
    return order.index(cell) if cell in order else len(order)


def _cell(runs: Sequence[Summary]) -> Comparison:
    done = completed(runs)
    bad = [run for run in runs if run.status in (FAILED, INVALID)]
    digests = {run.output_digest for run in done if run.output_digest}
    return Comparison(
        cell=runs[0].cell,
        status=COMPLETED if done else bad[-1].status,
        reason=bad[-1].reason if bad else None,
        reason_status=bad[-1].status if bad else None,
        num_starts=len(by_round(done)),
        num_runs=len(done),
        relative_to_best=None,
        in_best_set=None,
        spread=_spread(done),
        output_digest=next(iter(digests)) if len(digests) == 1 else None,
        distinct_outputs=len(digests),
        **_figures(runs),
    )


def _spread(done: Sequence[Summary]) -> ThroughputSpread:
    found = spread(list(THROUGHPUT.starts(done).values()))
    if found is None:
        return nothing(ThroughputSpread)
    reached = (run.throughput.output_throughput for run in done)
    return ThroughputSpread(
        std=found.std,
        cv_between=found.cv,
        cv_within=THROUGHPUT.cv_within(done),
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        best=max(one for one in reached if one is not None),
    )


def _figures(runs: Sequence[Summary]) -> dict[str, Any]:
    """Every group of figures, over the runs that count for it.

    A cell without a completed run has only the figures that are the same for every run.
    """
    done = completed(runs)
    counted, functions = (done, FUNCTIONS) if done else (runs, SAME_FOR_ALL)
    out: dict[str, Any] = {}
    for field in (*fields(Figures), *fields(Observed)):
        out[field.name] = _over_starts(counted, field.name, functions)
    return out | {
        "energy": _over_starts(with_valid_power(runs), "energy", FUNCTIONS, Energy),
        "goodput": _over_starts(held_to_one_level(runs), "goodput", FUNCTIONS, Goodput),
        "slo": _over_starts(held_to_one_slo(runs), "slo", FUNCTIONS, Slo),
    }


def _over_starts(
    runs: Sequence[Summary],
    name: str,
    functions: Mapping[OverRuns, Callable[[list[Any]], Any]],
    kind: type[Any] | None = None,
) -> Any:
    """One group of figures, reduced over the runs of each start, then over starts.

    kind: of the group; None: that of the first run.
    """
    kind = kind or type(getattr(runs[0], name))
    starts = by_round(runs).values()
    means = [reduced(kind, [getattr(run, name) for run in mine], functions) for mine in starts]
    return reduced(kind, means, functions)
