"""The devices during a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.report.charts.views import Names, View, by_cell, compact, view
from workers.rows import widened

SAMPLES = 100  # of a cell's telemetry over time


@dataclass(frozen=True, slots=True)
class Gauge:
    """A column of the table `telemetry` as it is drawn. scale: factor from its unit to that of the
    chart."""

    title: str
    unit: str
    column: str
    scale: float = 1.0


GAUGES = (
    Gauge("GPU utilisation", "%", "gpu_utilization_pct"),
    Gauge("Power", "W", "power_w"),
    Gauge("GPU memory used", "GB", "memory_used_bytes", 1e-9),
    Gauge("SM clock", "MHz", "sm_clock_mhz"),
    Gauge("Temperature", "°C", "temperature_c"),
    Gauge("Memory utilisation", "%", "memory_utilization_pct"),
)
CPU_GAUGES = (
    Gauge("Processor use of a worker", "% of a core", "process_cpu_pct"),
    Gauge("Main memory of a worker", "GB", "process_rss_bytes", 1e-9),
)


@dataclass(frozen=True)
class Bins:
    """Values over time: s, the middle of each stretch; mean, least and greatest value in it."""

    s: list[float | None]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True)
class GaugeFigures(Bins, View):
    """One gauge over the time of one run of a cell, over its devices and ranks."""

    gauge: str
    unit: str


@dataclass(frozen=True, slots=True)
class Samples:
    """The columns of the kept table that are drawn. times, values of each gauge: float64 [samples],
    NaN where unknown. runs, ranks: int64 [samples]."""

    times: np.ndarray
    runs: np.ndarray
    ranks: np.ndarray
    values: Mapping[Gauge, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table) -> Samples:
        """The gauges of GPUs where the table has any, else those of processes."""
        gauges = GAUGES if table.column("gpu").null_count < table.num_rows else CPU_GAUGES

        def floats(name: str) -> np.ndarray:
            return np.asarray(table.column(name).cast(pa.float64()).fill_null(np.nan))

        return cls(
            floats("time_s"),
            np.asarray(table.column("run")),
            np.asarray(table.column("rank")),
            {gauge: floats(gauge.column) for gauge in gauges},
        )

    def first_run(self, places: np.ndarray) -> np.ndarray:
        """The `places` that belong to the first run among them."""
        runs = self.runs[places]
        return np.asarray(places[(runs == runs.min()) & ~np.isnan(self.times[places])])

    def drawn(self, places: np.ndarray) -> Iterator[tuple[Gauge, Bins]]:
        """The gauges that are known at `places`."""
        devices = len(np.unique(self.ranks[places]))
        for gauge, values in self.values.items():
            mine = gauge.scale * values[places]
            if not np.isnan(mine).all():
                yield gauge, binned(self.times[places], mine, devices)


def telemetry(table: pa.Table | None, names: Names) -> list[GaugeFigures]:
    """A row for each cell and gauge, of the cell's first run. table: the kept samples."""
    if table is None:
        return []
    samples = Samples.of(table)
    return [
        widened(GaugeFigures, view(cell, names), gauge=gauge.title, unit=gauge.unit, **vars(bins))
        for cell, places in by_cell(table).items()
        if cell in names
        for gauge, bins in samples.drawn(samples.first_run(places))
    ]


def binned(seconds: np.ndarray, values: np.ndarray, devices: int) -> Bins:
    """`values` in equal stretches of time, at most SAMPLES, each long enough for all `devices`.

    seconds, values: float64 [samples]; NaN is left out.
    """
    known = ~np.isnan(values)
    seconds, values = seconds[known], values[known]
    number = max(1, min(SAMPLES, len(values) // devices))
    edges = np.linspace(seconds.min(), seconds.max(), 1 + number)
    index = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, number - 1)
    inside = {place: values[index == place] for place in np.unique(index)}
    return Bins(
        s=compact([(edges[place] + edges[place + 1]) / 2 for place in inside]),
        mean=compact([one.mean() for one in inside.values()]),
        low=compact([one.min() for one in inside.values()]),
        high=compact([one.max() for one in inside.values()]),
    )
