"""Power, energy and utilisation of a run, from what its ranks sampled, and whether these figures
can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workers.messages import RankReport
from workers.nvml import HARDWARE_SLOWDOWN, THERMAL, THROTTLING
from workers.records import TELEMETRY, SampleRow
from workers.rows import column, grouped, nothing, row

# Samples of a GPU during a run below which its power is not believed, whatever its counter says.
FEWEST_SAMPLES = 10
LEAST_COVERED = 0.95  # of a run's duration, from a GPU's first sample to its last
MOST_APART = 0.10  # the energy of the samples and that of the counter
NUMBERS = ("gpu_utilization_pct", "power_w", "energy_mj", "temperature_c", "throttle_reasons")


@row
class Energy:
    """Power and energy of the GPUs; null where none was sampled, as on a CPU.

    The comparison has the means of the runs whose power is valid.
    """

    mean_gpu_utilization_pct: float | None = column(
        "time in which a GPU ran a kernel, mean over samples, then over GPUs", "%"
    )
    mean_power_w: float | None = column(
        "power of all GPUs", "W", formula="energy_j / duration", over_runs="mean"
    )
    peak_temperature_c: float | None = column("highest temperature of a GPU", "degC")
    energy_j: float | None = column(
        "energy of all GPUs: the trapezoid of power over the run; beyond a GPU's samples its power "
        "is held. Null unless every GPU told its power",
        "J",
        over_runs="mean",
        better="lower",
    )
    energy_counter_j: float | None = column(
        "energy by the GPUs' own counters, between the first and last sample in the run", "J"
    )
    joules_per_output_token: float | None = column(
        "energy of a generated token",
        "J",
        formula="energy_j / total_output_tokens",
        over_runs="mean",
        better="lower",
    )
    power_valid: bool | None = column("whether energy may be set against another run's")
    power_reasons: str | None = column("why it may not")
    throttled: bool | None = column("whether clocks were held down, for power, heat or a fault")


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


@dataclass(frozen=True)
class Sampled:
    """The samples of the GPUs of one run of `duration` seconds under a layout of `num_gpus`."""

    traces: Sequence[Trace]
    duration: float
    num_gpus: int

    def over_gpus(self, name: str, function: Callable[[np.ndarray], float]) -> list[float]:
        """`function` of each GPU's values during the run; GPUs without any are left out."""
        known = [trace.known(name, self.duration)[1] for trace in self.traces]
        return [float(function(values)) for values in known if len(values)]

    def seen(self, bits: int) -> bool | None:
        """Whether any of `bits` was set in the clocks event reasons during the run.

        None where no GPU tells them.
        """
        known = (trace.known("throttle_reasons", self.duration)[1] for trace in self.traces)
        values = np.concatenate(list(known))
        return bool((values.astype(np.int64) & bits).any()) if values.size else None

    @cached_property
    def energy_j(self) -> float | None:
        """Joules by the samples over the whole run; None unless every GPU told its power."""
        if list(self.unknown_power()):
            return None
        return sum(energy_j(*one.known("power_w"), 0.0, self.duration) for one in self.traces)

    @cached_property
    def counted_j(self) -> float | None:
        """Joules by the GPUs' counters between their first and last sample within the run.

        None where one has none.
        """
        spans = [trace.known("energy_mj", self.duration)[1] for trace in self.traces]
        if any(len(values) < 2 for values in spans):
            return None
        return sum(float(values[-1] - values[0]) for values in spans) / 1e3

    def sampled_j(self) -> float:
        """Joules by the samples over the same spans as `counted_j`; 0 where there are none."""
        spans = [trace.known("energy_mj", self.duration)[0] for trace in self.traces]
        return sum(
            energy_j(*trace.known("power_w"), times[0], times[-1])
            for trace, times in zip(self.traces, spans, strict=True)
            if len(times) > 1
        )

    def unknown_power(self) -> Iterator[str]:
        """Why there is no energy of the whole layout; nothing where there is."""
        unseen = self.num_gpus - len(self.traces)
        without = sum(not len(trace.known("power_w")[0]) for trace in self.traces)
        if unseen > 0:
            yield f"no samples of {unseen} of {self.num_gpus} GPUs"
        elif without == self.num_gpus:
            yield "no power counter"
        elif without:
            yield f"no power counter on {without} of {self.num_gpus} GPUs"

    def doubts(self) -> Iterator[str]:
        """Why the energy of the samples may not be that of the run."""
        samples = min(len(trace.known("power_w", self.duration)[0]) for trace in self.traces)
        if samples < FEWEST_SAMPLES:
            yield f"run of {self.duration:.1f} s is under {FEWEST_SAMPLES} samples"
        covered = min(_covered(trace, self.duration) for trace in self.traces)
        if covered < LEAST_COVERED:
            yield f"samples cover {100 * covered:.0f}% of the run"
        counted, sampled = self.counted_j, self.sampled_j()
        if counted and abs(sampled - counted) > MOST_APART * counted:
            yield f"{sampled:.0f} J by the samples, {counted:.0f} J by the energy counter"


def energy_of(
    reports: Iterable[RankReport], duration: float, output_tokens: int, num_gpus: int
) -> Energy:
    """Energy of a run of `duration` seconds that made `output_tokens`."""
    samples = [
        sample
        for report in reports
        if report.telemetry is not None
        for sample in TELEMETRY.rows(report.telemetry)
    ]
    traces = _traces(sample for sample in samples if sample.gpu_uuid is not None)
    if not traces or duration <= 0:
        return nothing(Energy)
    seen = Sampled(traces, duration, num_gpus)
    reasons = [*(list(seen.unknown_power()) or seen.doubts()), *_interference(samples, seen)]
    energy = seen.energy_j
    known = energy is not None and output_tokens
    return Energy(
        mean_gpu_utilization_pct=_mean(seen.over_gpus("gpu_utilization_pct", np.mean)),
        mean_power_w=None if energy is None else energy / duration,
        peak_temperature_c=max(seen.over_gpus("temperature_c", np.max), default=None),
        energy_j=energy,
        energy_counter_j=None if len(traces) < num_gpus else seen.counted_j,
        joules_per_output_token=energy / output_tokens if energy is not None and known else None,
        power_valid=not reasons,
        power_reasons="; ".join(reasons) or None,
        throttled=seen.seen(THROTTLING),
    )


def energy_j(times: np.ndarray, watts: np.ndarray, start: float, end: float) -> float:
    """The integral in joules of `watts` at `times` (seconds, rising) from `start` to `end`, by
    trapezoid.

    Power at the two ends is interpolated; before the first sample and after the last it is held.
    """
    inside = times[(times > start) & (times < end)]
    grid = np.concatenate([[start], inside, [end]])
    power = np.interp(grid, times, watts)
    return float(np.sum(np.diff(grid) * (power[1:] + power[:-1]) / 2))


def other_processes(samples: Iterable[SampleRow]) -> int:
    """How many processes beside those that report were seen on their GPUs.

    Where none of ours is known by its number, NVML counts in another namespace (a container), and
    as many as report are ours.
    """
    seen: set[int] = set()
    ours: set[int] = set()
    for sample in samples:
        ours.add(sample.process_id)
        seen.update(sample.gpu_process_ids or ())
    return len(seen - ours) if seen & ours else max(len(seen) - len(ours), 0)


def _interference(samples: Sequence[SampleRow], seen: Sampled) -> Iterator[str]:
    if seen.seen(THERMAL):
        yield "thermal throttling seen"
    if seen.seen(HARDWARE_SLOWDOWN):
        yield "hardware slowdown seen"
    if other_processes(samples):
        yield "other processes on the GPU"


def _traces(samples: Iterable[SampleRow]) -> list[Trace]:
    """By GPU; one that two processes have sampled counts once."""
    of_gpus = grouped(samples, lambda one: one.gpu_uuid).values()
    return [_trace([one for one in of_gpu if one.rank == of_gpu[0].rank]) for of_gpu in of_gpus]


def _trace(samples: Sequence[SampleRow]) -> Trace:
    def values(name: str) -> np.ndarray:
        return np.array([getattr(sample, name) for sample in samples], dtype=float)

    times = np.array([sample.time_s for sample in samples])
    return Trace(times, {name: values(name) for name in NUMBERS})


def _covered(trace: Trace, duration: float) -> float:
    """The part of the run between the first and the last sample of power."""
    times, _ = trace.known("power_w")
    return float(max(min(times[-1], duration) - max(times[0], 0.0), 0.0) / duration)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
