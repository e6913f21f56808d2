"""How far the starts of each cell lie apart and the runs inside them, figure by figure, and which
cells are less certain than was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.analysis.comparing.confidence import CONFIRMING, is_narrow, spread
from orchestrator.analysis.comparing.metrics import METRICS, SHARES, THROUGHPUT, Figure
from orchestrator.analysis.comparing.rounds import completed, names_of, whole
from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row

OF_ROW = "see `unit`"


@row
class Statistic:
    """One figure of one cell over its starts; of each start the mean over its runs. A latency of a
    run is the median over its requests."""

    cell: CellKey = group()
    metric: str = column("the column of the summary")
    unit: str = column("its unit")
    n: int = column("starts that count", "1")
    mean: float = column("their mean", OF_ROW)
    std: float | None = column("their standard deviation, as a sample", OF_ROW)
    cv_between: float | None = column("their coefficient of variation", "1", formula="std / mean")
    cv_within: float | None = column(
        "coefficient of variation of the runs inside a start, pooled over starts; null where each "
        "has one run",
        "1",
    )
    ci_low: float | None = column(
        "lower end of the mean's 95% interval, from two starts on", OF_ROW, source="Student"
    )
    ci_high: float | None = column("upper end of it", OF_ROW, source="Student")


@row
class Unsettled:
    """A cell whose mean output_throughput is less certain than was asked for."""

    cell: CellKey = group()
    n: int = column("starts that count", "1")
    half_width: float | None = column("half the interval over the mean; null for one start", "1")
    until_ci: float = column("what was asked for", "1")
    sentence: str = column("the same in words")


STATISTICS = Table("statistics", Statistic)
UNSETTLED = Table("unsettled", Unsettled)


def statistics(runs: Iterable[Summary]) -> list[Statistic]:
    """A row per cell and figure that was measured: those that layouts are judged by, and the shares
    of communication and bubble in a decode step.

    A figure that no run knows has no row.
    """
    cells = grouped(whole(runs), lambda run: run.cell).values()
    figures = (*METRICS, *SHARES)
    return [one for mine in cells for figure in figures for one in _of_figure(mine, figure)]


def unsettled(runs: Iterable[Summary], until_ci: float | None) -> list[Unsettled]:
    """The cells whose output_throughput is not within `until_ci` yet, as `is_narrow` has it.

    Nothing is unsettled where `until_ci` is None.
    """
    if until_ci is None:
        return []
    cells = grouped(completed(whole(runs)), lambda run: run.cell)
    known = {cell: list(THROUGHPUT.starts(mine).values()) for cell, mine in cells.items()}
    return [
        _unsettled(name, cell, known[cell], until_ci)
        for name, cell in zip(names_of(list(known)), known, strict=True)
        if known[cell] and not is_narrow(known[cell], until_ci)
    ]


def _of_figure(runs: Sequence[Summary], figure: Figure) -> Iterator[Statistic]:
    found = spread(list(figure.starts(runs).values()))
    if found is not None:
        yield Statistic(
            cell=runs[0].cell,
            metric=figure.column,
            unit=figure.unit,
            n=found.n,
            mean=found.mean,
            std=found.std,
            cv_between=found.cv,
            cv_within=figure.cv_within(runs),
            ci_low=found.ci_low,
            ci_high=found.ci_high,
        )


def _unsettled(name: str, cell: CellKey, starts: Sequence[float], until_ci: float) -> Unsettled:
    found = spread(starts)
    half = found.half_width if found else None
    made = "1 start" if len(starts) == 1 else f"{len(starts)} starts"
    sentence = (
        f"{name} {cell.scenario} at {cell.max_concurrency}: {_reached(half, until_ci)} after "
        f"{made} (asked ±{100 * until_ci:g}%)"
    )
    return Unsettled(
        cell=cell, n=len(starts), half_width=half, until_ci=until_ci, sentence=sentence
    )


def _reached(half: float | None, until_ci: float) -> str:
    if half is None:
        return "no interval"
    wide = f"±{100 * half:.1f}%"
    return f"still {wide}" if half > until_ci else f"{wide}, not confirmed by {CONFIRMING} more,"
