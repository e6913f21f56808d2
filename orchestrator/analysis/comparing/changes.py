"""Two results side by side: what each of them measured in a cell, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.analysis.comparing.confidence import Ratio
from orchestrator.analysis.comparing.rounds import completed, names_of
from orchestrator.analysis.comparing.two_results import JoinedCell, Sides, TwoResults, sides_of
from orchestrator.analysis.summary import SUMMARY, Summary
from workers.rows import Column, Table, column, group, grouped, row

BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"
FEW_STARTS, NO_RATIO = "one start", "no ratio"
ABSENT = "absent"
MAIN = "output_throughput"
# What is laid side by side, where a side knows it; MAIN always.
METRICS = (
    MAIN,
    "median_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "request_goodput",
    "comm_exposed_pct",
    "bubble_pct",
    "joules_per_output_token",
    "peak_memory_bytes",
)
COLUMNS = {one.name: one for one in SUMMARY.columns if one.name in METRICS}


@row
class Change:
    """One metric of one cell in two results."""

    cell: str = column("its name")
    joined: JoinedCell = group()
    layout: str = column("what it is called among the cells of the same load")
    base_status: str = column("completed, failed, invalid or absent")
    new_status: str = column("the same of the new result")
    metric: str = column("column of the summary")
    better: str | None = column("which of two values of it is the better one: higher, lower")
    base: float | None = column("mean over the base's starts, in the unit of the metric", "1")
    new: float | None = column("the same of the new result", "1")
    ratio: float | None = column("new / base", "1")
    ci_low: float | None = column("lower end of its 95% interval over starts", "1")
    ci_high: float | None = column("upper end of it", "1")
    base_starts: int = column("starts of the base that know it", "1")
    new_starts: int = column("starts of the new result that know it", "1")
    change: str = column(
        "better, worse: the interval leaves 1 out; not shown: it holds 1; one start: of a side, so "
        "there is none; no ratio: a side does not know it, or has 0"
    )


CHANGES = Table("changes", Change)


class Pair(NamedTuple):
    """The runs of a cell in both results; none where one does not have it."""

    cell: JoinedCell
    base: Sequence[Summary]
    new: Sequence[Summary]


def changes(results: TwoResults) -> list[Change]:
    """A row for every cell of either result and metric that one of them knows: by model, scenario
    and load, the layouts in the order of their runs."""
    cells = dict.fromkeys((*results.base, *results.new))
    pairs = [Pair(one, results.base.get(one, ()), results.new.get(one, ())) for one in cells]
    loads = grouped(pairs, lambda pair: pair.cell.load)
    return [one for load in sorted(loads) for one in _of_load(loads[load])]


def _of_load(pairs: Sequence[Pair]) -> Iterator[Change]:
    names = names_of([(pair.base or pair.new)[0].cell for pair in pairs])
    for name, pair in zip(names, pairs, strict=True):
        for metric in METRICS:
            sides = sides_of(COLUMNS[metric], pair.base, pair.new)
            if metric == MAIN or sides.base or sides.new:
                yield _change(pair, name, COLUMNS[metric], sides)


def _change(pair: Pair, layout: str, metric: Column, sides: Sides) -> Change:
    found, (base, new) = sides.ratio, sides.means
    return Change(
        cell=pair.cell.name,
        joined=pair.cell,
        layout=layout,
        base_status=_status(pair.base),
        new_status=_status(pair.new),
        metric=metric.name,
        better=metric.better,
        base=base,
        new=new,
        ratio=found.value if found else None,
        ci_low=found.low if found else None,
        ci_high=found.high if found else None,
        base_starts=len(sides.base),
        new_starts=len(sides.new),
        change=_word(metric, found, sides),
    )


def _word(metric: Column, found: Ratio | None, sides: Sides) -> str:
    if found is None:
        return NO_RATIO
    if sides.with_few_starts:
        return FEW_STARTS
    if found.low is None or found.high is None or found.low <= 1.0 <= found.high:
        return NOT_SHOWN
    return BETTER if (found.value > 1.0) == (metric.better == "higher") else WORSE


def _status(runs: Sequence[Summary]) -> str:
    if not runs:
        return ABSENT
    done = completed(runs)
    return done[0].status if done else runs[-1].status
