"""How far the runs of each cell lie apart, metric by metric, and which cells are less certain than
was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.analysis.comparing.compare import names_of, whole
from orchestrator.analysis.comparing.confidence import Spread, spread
from orchestrator.analysis.comparing.verdicts import METRICS, Metric
from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row

OF_ROW = "see `unit`"


@row
class Statistic:
    """One metric of one cell over its runs. A latency is that of each run: the median over its
    requests."""

    cell: CellKey = group()
    metric: str = column("the column of the summary")
    unit: str = column("its unit")
    n: int = column("runs that count", "1")
    mean: float = column("their mean", OF_ROW)
    std: float | None = column("their standard deviation, as a sample", OF_ROW)
    cv: float | None = column("their coefficient of variation", "1", formula="std / mean")
    ci_low: float | None = column("lower end of the mean's 95% interval", OF_ROW, source="Student")
    ci_high: float | None = column("upper end of it", OF_ROW, source="Student")


@row
class Unsettled:
    """A cell whose mean output_throughput is less certain than was asked for."""

    cell: CellKey = group()
    n: int = column("runs that count", "1")
    half_width: float | None = column("half the interval over the mean; null for one run", "1")
    until_ci: float = column("what was asked for", "1")
    sentence: str = column("the same in words")


STATISTICS = Table("statistics", Statistic)
UNSETTLED = Table("unsettled", Unsettled)


def statistics(runs: Iterable[Summary]) -> list[Statistic]:
    """A row per cell and metric that was measured: the mean over its runs and their spread.

    A metric that no run knows has no row.
    """
    cells = grouped(whole(runs), lambda run: run.cell).values()
    return [one for mine in cells for metric in METRICS for one in _of_metric(mine, metric)]


def unsettled(found: Iterable[Statistic], until_ci: float | None) -> list[Unsettled]:
    """The cells whose output_throughput has an interval half of which is above `until_ci` of the
    mean, or has none yet.

    Nothing is unsettled where `until_ci` is None.
    """
    if until_ci is None:
        return []
    rows = [one for one in found if one.metric == "output_throughput"]
    named = zip(names_of([one.cell for one in rows]), rows, strict=True)
    return [wide for name, one in named for wide in _too_wide(name, one, until_ci)]


def _of_metric(runs: Sequence[Summary], metric: Metric) -> Iterator[Statistic]:
    found = spread(metric.values(runs))
    if found is not None:
        yield Statistic(
            cell=runs[0].cell,
            metric=metric.column,
            unit=metric.unit,
            n=found.n,
            mean=found.mean,
            std=found.std,
            cv=found.cv,
            ci_low=found.ci_low,
            ci_high=found.ci_high,
        )


def _too_wide(name: str, one: Statistic, until_ci: float) -> Iterator[Unsettled]:
    half = Spread(one.n, one.mean, ci_high=one.ci_high).half_width
    if half is not None and half <= until_ci:
        return
    runs = "1 run" if one.n == 1 else f"{one.n} runs"
    reached = "no interval" if half is None else f"still ±{100 * half:.1f}%"
    sentence = (
        f"{name} {one.cell.scenario} at {one.cell.max_concurrency}: {reached} after {runs} "
        f"(asked ±{100 * until_ci:g}%)"
    )
    yield Unsettled(cell=one.cell, n=one.n, half_width=half, until_ci=until_ci, sentence=sentence)
