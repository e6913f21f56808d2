"""Latencies request by request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.analysis.latency import TokenTimes
from orchestrator.report.charts.views import Names, View, by_cell, compact, view
from workers.rows import widened

QUANTILES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class LatencyQuantiles(View):
    """One latency (ttft, tpot, e2el) over the requests of all runs of a cell.

    q: its quantiles 0, 1% ... 100% in ms.
    """

    metric: str
    requests: int
    q: list[float | None]


def latencies(requests: pa.Table | None, names: Names) -> list[LatencyQuantiles]:
    """A row for each cell and latency that a request of it has. requests: the kept table."""
    if requests is None:
        return []
    values = TokenTimes.of(requests).by_name()
    return [
        widened(
            LatencyQuantiles,
            view(cell, names),
            metric=name,
            requests=len(known),
            q=compact(np.quantile(known, QUANTILES)),
        )
        for cell, places in by_cell(requests).items()
        for name, found in values.items()
        if cell in names and len(known := found[places][~np.isnan(found[places])])
    ]
