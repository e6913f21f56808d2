"""Communication by operation: what calls took and reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.analysis.observed.accounting import CellTimed
from orchestrator.report.charts.views import Names, View, rounded, view
from workers.rows import grouped, widened

Function = Callable[[list[float]], float]


@dataclass(frozen=True)
class OperationFigures(View):
    """The calls of one operation over one mesh axis in one phase: means over ranks, and the worst
    rank. None where it was not observed.

    calls: of one rank. bytes_per_call: as the message is counted. Times in us, rates in GB/s.
    """

    phase: str
    op: str
    axis: str
    group_size: int | None
    calls: float | None
    bytes_per_call: float | None
    transfer_us: float | None
    transfer_us_worst: float | None
    wait_us: float | None
    wait_us_worst: float | None
    algbw: float | None
    algbw_worst: float | None
    busbw: float | None
    busbw_worst: float | None


def communication(timed: Iterable[CellTimed], names: Names) -> list[OperationFigures]:
    """A row for each cell, phase, operation and group, over its ranks."""
    known = [one for one in timed if one.cell in names and one.calls]
    groups = grouped(
        known, lambda one: (one.cell, one.phase, one.op, one.axis, one.group_size)
    ).values()
    return [_operation(ranks, names) for ranks in groups]


def _operation(ranks: list[CellTimed], names: Names) -> OperationFigures:
    def over(function: Function, values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return rounded(function(known)) if known else None

    mean, first = statistics.fmean, ranks[0]
    transfer, wait = [one.transfer_us for one in ranks], [one.wait_us for one in ranks]
    algbw, busbw = [one.algbw for one in ranks], [one.busbw for one in ranks]
    return widened(
        OperationFigures,
        view(first.cell, names),
        phase=first.phase,
        op=first.op,
        axis=first.axis,
        group_size=first.group_size,
        calls=over(mean, [one.calls for one in ranks]),
        bytes_per_call=over(mean, [one.bytes and one.bytes / one.calls for one in ranks]),
        transfer_us=over(mean, transfer),
        transfer_us_worst=over(max, transfer),
        wait_us=over(mean, wait),
        wait_us_worst=over(max, wait),
        algbw=over(mean, algbw),
        algbw_worst=over(min, algbw),
        busbw=over(mean, busbw),
        busbw_worst=over(min, busbw),
    )
