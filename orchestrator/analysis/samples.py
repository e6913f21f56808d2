"""What the ranks of a run sampled of their GPUs. Its energy, its clocks and its cross-checks are
worked out from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workers.messages import RankReport
from workers.records import TELEMETRY, SampleRow
from workers.rows import grouped

# Two measures of the same thing may differ by so much of one of them.
TOLERANCE = 0.05
NUMBERS = (
    "gpu_utilization_pct",
    "power_w",
    "energy_mj",
    "temperature_c",
    "throttle_reasons",
    "sm_clock_mhz",
    "max_sm_clock_mhz",
    "nvlink_tx_bytes",
)


@dataclass(frozen=True, slots=True)
class Trace:
    """The samples of one GPU.

    times: float64 [samples], seconds since the run's start. columns: float64 [samples] by name;
    NaN where it was not read.
    """

    times: np.ndarray
    columns: Mapping[str, np.ndarray]

    def known(self, name: str, duration: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Times and values where `name` is known; with a duration only those within the run."""
        values = self.columns[name]
        kept = ~np.isnan(values)
        if duration is not None:
            kept &= (self.times >= 0) & (self.times <= duration)
        return self.times[kept], values[kept]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The samples of the GPUs of one run of `duration` seconds under a layout of `num_gpus`.

    rows: those of processes without a GPU included. traces: of each GPU, at least one.
    """

    rows: Sequence[SampleRow]
    traces: Sequence[Trace]
    duration: float
    num_gpus: int

    def during(self, name: str) -> list[np.ndarray]:
        """float64 [samples] of each GPU during the run; GPUs without any are left out."""
        known = [trace.known(name, self.duration)[1] for trace in self.traces]
        return [values for values in known if len(values)]

    def over_gpus(self, name: str, function: Callable[[np.ndarray], float]) -> list[float]:
        """`function` of each GPU's values during the run; GPUs without any are left out."""
        return [float(function(values)) for values in self.during(name)]

    @property
    def fewest(self) -> int:
        """Samples of power during the run of the GPU that has fewest."""
        return min(len(trace.known("power_w", self.duration)[0]) for trace in self.traces)

    def held_down(self, reasons: int) -> list[float]:
        """Of each GPU, the share of its samples during the run in which any bit of `reasons` was
        set in NVML's clocks event reasons; GPUs that do not tell them are left out."""
        masks = self.during("throttle_reasons")
        return [float(np.mean((mask.astype(np.int64) & reasons) != 0)) for mask in masks]


def sampled(reports: Iterable[RankReport], duration: float | None, num_gpus: int) -> Sampled | None:
    """What was sampled in a run; None where no GPU was, as on a CPU, or the run took no time."""
    rows = [
        sample
        for report in reports
        if report.telemetry is not None
        for sample in TELEMETRY.rows(report.telemetry)
    ]
    traces = _traces(sample for sample in rows if sample.gpu_uuid is not None)
    return Sampled(rows, traces, duration, num_gpus) if traces and duration else None


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def _traces(samples: Iterable[SampleRow]) -> list[Trace]:
    """By GPU; one that two processes have sampled counts once."""
    of_gpus = grouped(samples, lambda one: one.gpu_uuid).values()
    return [_trace([one for one in of_gpu if one.rank == of_gpu[0].rank]) for of_gpu in of_gpus]


def _trace(samples: Sequence[SampleRow]) -> Trace:
    def values(name: str) -> np.ndarray:
        return np.array([getattr(sample, name) for sample in samples], dtype=float)

    times = np.array([sample.time_s for sample in samples])
    return Trace(times, {name: values(name) for name in NUMBERS})
