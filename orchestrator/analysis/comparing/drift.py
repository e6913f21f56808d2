"""Whether the runs inside a start drift: figures that rise or fall from run to run are of a machine
that is not warm yet, or grows too warm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.analysis.comparing.metrics import THROUGHPUT, TPOT, TTFT, Metric
from orchestrator.analysis.comparing.rounds import by_round, whole
from orchestrator.analysis.comparing.significance import ALPHA, holm
from orchestrator.analysis.summary import Summary
from orchestrator.experiment import DIFFERENCE
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row

CALLED: Mapping[Metric, str] = {TTFT: "TTFT", TPOT: "TPOT", THROUGHPUT: "throughput"}
Points = Sequence[tuple[float, float]]


@row
class Drift:
    """A figure of a cell that changes from run to run inside its starts."""

    cell: CellKey = group()
    metric: str = column("the column of the summary")
    starts: int = column("starts that have several runs", "1")
    runs: int = column("runs of these", "1")
    change_per_run_pct: float = column(
        "change from a run to the next, pooled over starts",
        "%",
        formula="100 x (exp(slope of the logarithm over the run's number) - 1)",
    )
    p: float = column(
        "p of no drift, adjusted for all cells and metrics of the experiment",
        "1",
        source="Student with runs - starts - 1 degrees of freedom; Holm 1979",
    )
    sentence: str = column("the same in words")


DRIFTS = Table("drifts", Drift)


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through the runs of a cell, with a height of its own for each start.

    slope: of the logarithm, a run. reach: runs from the first to the last.
    """

    starts: int
    runs: int
    slope: float
    reach: float
    p: float

    def changes_by(self, runs: float) -> float:
        """The relative change over as many runs."""
        return math.expm1(self.slope * runs)


def drifts(runs: Iterable[Summary], difference: float = DIFFERENCE) -> list[Drift]:
    """The figures that are shown to drift by more than `difference` (a share) from the first run of
    a start to its last. A cell with one run a start cannot tell."""
    cells = grouped(whole(runs), lambda run: run.cell)
    asked = [(cell, metric) for cell in cells for metric in CALLED]
    found = [(*one, trend(_points(cells[one[0]], one[1]))) for one in asked]
    known = [(cell, metric, line) for cell, metric, line in found if line is not None]
    adjusted = holm([line.p for _, _, line in known])
    tested = [(c, m, replace(line, p=p)) for (c, m, line), p in zip(known, adjusted, strict=True)]
    return [
        _drift(cell, metric, line)
        for cell, metric, line in tested
        if line.p < ALPHA and abs(line.changes_by(line.reach)) > difference
    ]


def trend(starts: Sequence[Points]) -> Trend | None:
    """The slope of log(value) over the number of the run, pooled within starts, and its Student
    test. starts: of each, (number of the run, value above 0).

    None unless there are two runs more than starts: without a degree of freedom there is no test.
    """
    several = [start for start in starts if len(start) > 1]
    centred = [point for start in several for point in _centred(start)]
    freedom = len(centred) - len(several) - 1
    squares = math.fsum(x * x for x, _ in centred)
    if freedom < 1 or not squares:
        return None
    slope = math.fsum(x * y for x, y in centred) / squares
    left = math.fsum((y - slope * x) ** 2 for x, y in centred) / freedom
    reach = max(start[-1][0] - start[0][0] for start in several)
    return Trend(len(several), len(centred), slope, reach, _p(slope, left / squares, freedom))


def _p(slope: float, variance: float, freedom: int) -> float:
    """Two-sided, of a slope of 0."""
    from scipy.special import stdtr

    if not variance:
        return 0.0 if slope else 1.0
    return 2.0 * float(stdtr(freedom, -abs(slope) / math.sqrt(variance)))


def _centred(start: Points) -> Iterator[tuple[float, float]]:
    numbers, logs = zip(*((x, math.log(y)) for x, y in start), strict=True)
    centres = statistics.fmean(numbers), statistics.fmean(logs)
    yield from ((x - centres[0], y - centres[1]) for x, y in zip(numbers, logs, strict=True))


def _points(runs: Sequence[Summary], metric: Metric) -> list[Points]:
    """Of each start of a cell, the runs that know a figure above 0, in order."""
    return [
        sorted((run.run, value) for run in mine if (value := metric.of(run)))
        for mine in by_round(metric.counted(runs)).values()
    ]


def _drift(cell: CellKey, metric: Metric, line: Trend) -> Drift:
    per_run = 100.0 * line.changes_by(1)
    verb = "rises" if per_run > 0 else "falls"
    return Drift(
        cell=cell,
        metric=metric.column,
        starts=line.starts,
        runs=line.runs,
        change_per_run_pct=per_run,
        p=line.p,
        sentence=(
            f"{CALLED[metric]} of {cell.strategy} {cell.scenario} at {cell.max_concurrency} {verb} "
            f"by {abs(per_run):.{0 if abs(per_run) >= 10 else 1}f}% from run to run: "
            f"{_what_to_do(metric, per_run)}"
        ),
    )


def _what_to_do(metric: Metric, per_run: float) -> str:
    """Faster from run to run is a machine that was cold."""
    if (per_run < 0) == metric.lower_is_better:
        return "raise --num-warmups"
    return "the machine becomes slower while it is measured"
