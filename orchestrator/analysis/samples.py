"""What the ranks of a run sampled of their GPUs, and the clocks of these. Its energy and its
cross-checks are worked out from the samples too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workers.device import GPU_IDLE, POWER_CAP
from workers.messages import RankReport
from workers.records import TELEMETRY, SampleRow
from workers.rows import column, grouped, nothing, row

# Two measures of the same thing may differ by so much of one of them.
TOLERANCE = 0.05
NAMED_PCT = 0.5  # a share of samples that is worth a word: less rounds to 0%
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


# -- clocks


@row
class Clocks:
    """Clocks of the GPUs during the run; null where none was sampled, as on a CPU."""

    power_capped_pct: float | None = column(
        "share of the samples in which the power cap held clocks down, mean over GPUs",
        "%",
        source="NVML, clocks event reasons",
        over_runs="mean",
    )
    clock_limited_pct: float | None = column(
        "the same for anything that holds clocks down: the power cap, heat, a hardware slowdown, "
        "sync boost or clocks that were set",
        "%",
        source="NVML, clocks event reasons",
        over_runs="mean",
    )
    mean_sm_clock_mhz: float | None = column(
        "clock of the multiprocessors, mean over samples, then over GPUs", "MHz", over_runs="mean"
    )
    lowest_sm_clock_mhz: float | None = column(
        "lowest clock of the multiprocessors in a sample of any GPU", "MHz", over_runs="mean"
    )
    sm_clock_pct: float | None = column(
        "mean clock of the multiprocessors in percent of the highest that the GPU allows, mean "
        "over GPUs",
        "%",
        over_runs="mean",
    )


def clocks_of(seen: Sampled | None) -> Clocks:
    """The clocks of a run, from what was sampled in it."""
    if seen is None:
        return nothing(Clocks)
    return Clocks(
        power_capped_pct=_percent(seen.held_down(POWER_CAP)),
        clock_limited_pct=_percent(seen.held_down(~GPU_IDLE)),
        mean_sm_clock_mhz=mean(seen.over_gpus("sm_clock_mhz", np.mean)),
        lowest_sm_clock_mhz=min(seen.over_gpus("sm_clock_mhz", np.min), default=None),
        sm_clock_pct=_percent([share for one in seen.traces for share in _of_max(one, seen)]),
    )


def clock_sentences(of: Mapping[str, Clocks]) -> Iterator[str]:
    """In how many samples clocks were held down, by the power cap and by anything; nothing where
    they were not. of: the clocks of each layout by its name."""
    capped = _shares(of, lambda one: one.power_capped_pct)
    if capped:
        yield f"Clocks held down by the power cap: {_listed(capped)}."
    limited = _shares(of, _beyond_the_cap)
    if limited:
        yield (
            f"Clocks held down by heat, hardware, settings or the power cap: {_listed(limited)}."
        )


def _beyond_the_cap(one: Clocks) -> float | None:
    """The share of samples in which anything held clocks down, where that is more than the power
    cap did."""
    limited = one.clock_limited_pct
    beyond = (limited or 0.0) - (one.power_capped_pct or 0.0)
    return limited if beyond >= NAMED_PCT else None


def _shares(
    of: Mapping[str, Clocks], share: Callable[[Clocks], float | None]
) -> list[tuple[str, float]]:
    """(name, percent) of those that have a share worth a word."""
    known = [(name, share(one) or 0.0) for name, one in of.items()]
    return [(name, found) for name, found in known if found >= NAMED_PCT]


def _listed(shares: Sequence[tuple[str, float]]) -> str:
    """The first with what it is a share of, the others without."""
    (first, share), *others = shares
    more = [f"{name} in {found:.0f}%" for name, found in others]
    return ", ".join([f"{first} in {share:.0f}% of samples", *more])


def _of_max(trace: Trace, seen: Sampled) -> list[float]:
    """The mean clock of a GPU over the highest that it allows; empty where either is unknown."""
    clock, highest = (
        trace.known(name, seen.duration)[1] for name in ("sm_clock_mhz", "max_sm_clock_mhz")
    )
    return [float(np.mean(clock) / np.max(highest))] if len(clock) and len(highest) else []


def _percent(shares: Sequence[float]) -> float | None:
    found = mean(shares)
    return None if found is None else 100.0 * found
