"""Power, energy and utilisation of a run, from what its ranks sampled, and whether these figures
can be believed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from orchestrator.analysis.samples import TOLERANCE, Sampled, Trace, mean
from workers.device import HARDWARE_SLOWDOWN, THERMAL
from workers.records import SampleRow
from workers.rows import column, nothing, row

# Samples of a GPU during a run below which its power is not believed, whatever its counter says.
FEWEST_SAMPLES = 10
LEAST_COVERED = 0.95  # of a run's duration, from a GPU's first sample to its last
UPDATE_S = 0.1  # from one update of a GPU's energy counter to the next (docs/measurement.md)


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


class Joules(NamedTuple):
    """The energy of all GPUs over the same time, measured twice: by the trapezoid of sampled power,
    and by their energy counters. update: by which the counters go up at once."""

    sampled: float
    counted: float
    update: float

    @property
    def agree(self) -> bool:
        """Whether the two are within TOLERANCE of the counters, and an update of them."""
        return abs(self.sampled - self.counted) <= TOLERANCE * self.counted + self.update

    def __str__(self) -> str:
        return f"{self.sampled:.0f} J by the samples, {self.counted:.0f} J by the energy counter"


def energy_of(seen: Sampled | None, output_tokens: int) -> Energy:
    """Energy of a run that made `output_tokens`, from what was sampled in it."""
    if seen is None:
        return nothing(Energy)
    unknown = list(_unknown_power(seen))
    reasons = [*(unknown or _doubts(seen)), *_interference(seen)]
    energy = None if unknown else _whole_j(seen)
    return Energy(
        mean_gpu_utilization_pct=mean(seen.over_gpus("gpu_utilization_pct", np.mean)),
        mean_power_w=None if energy is None else energy / seen.duration,
        peak_temperature_c=max(seen.over_gpus("temperature_c", np.max), default=None),
        energy_j=energy,
        energy_counter_j=_counted_j(seen),
        joules_per_output_token=energy / output_tokens if energy and output_tokens else None,
        power_valid=not reasons,
        power_reasons="; ".join(reasons) or None,
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


def joules(seen: Sampled) -> Joules | None:
    """Energy by samples and by counters, of each GPU between the first and last reading of its
    counter within the run. None where either is unknown of a GPU of the layout, or the run is under
    FEWEST_SAMPLES."""
    counted = _counted_j(seen)
    if not counted or list(_unknown_power(seen)) or seen.fewest < FEWEST_SAMPLES:
        return None
    sampled = update = 0.0
    for trace in seen.traces:
        times, counts = trace.known("energy_mj", seen.duration)
        sampled += energy_j(*trace.known("power_w"), times[0], times[-1])
        update += (counts[-1] - counts[0]) / 1e3 * UPDATE_S / (times[-1] - times[0])
    return Joules(sampled, counted, update)


def other_processes(samples: Iterable[SampleRow]) -> int:
    """How many processes beside those that report were seen on their GPUs.

    Where none of ours is known by its number, NVML counts in another namespace (a container). Then
    on each GPU as many are ours as report of it: those that report, or workers of theirs. One
    beside them counts on every GPU on which it is.
    """
    reporting: dict[str | None, set[int]] = defaultdict(set)
    seen: dict[str | None, set[int]] = defaultdict(set)
    for sample in samples:
        reporting[sample.gpu_uuid].add(sample.process_id)
        seen[sample.gpu_uuid].update(sample.gpu_process_ids or ())
    ours, all_seen = set().union(*reporting.values()), set().union(*seen.values())
    if all_seen & ours:
        return len(all_seen - ours)
    return sum(max(len(seen[gpu]) - len(reporting[gpu]), 0) for gpu in seen)


def _unknown_power(seen: Sampled) -> Iterator[str]:
    """Why there is no energy of the whole layout; nothing where there is."""
    unseen = seen.num_gpus - len(seen.traces)
    without = sum(not len(trace.known("power_w")[0]) for trace in seen.traces)
    if unseen > 0:
        yield f"no samples of {unseen} of {seen.num_gpus} GPUs"
    elif without == seen.num_gpus:
        yield "no power counter"
    elif without:
        yield f"no power counter on {without} of {seen.num_gpus} GPUs"


def _whole_j(seen: Sampled) -> float:
    """Joules by the samples over the whole run."""
    return sum(energy_j(*one.known("power_w"), 0.0, seen.duration) for one in seen.traces)


def _counted_j(seen: Sampled) -> float | None:
    """Joules by the counters between their first and last reading within the run; None unless every
    GPU of the layout has two."""
    counts = [trace.known("energy_mj", seen.duration)[1] for trace in seen.traces]
    if len(counts) < seen.num_gpus or any(len(one) < 2 for one in counts):
        return None
    return sum(float(one[-1] - one[0]) for one in counts) / 1e3


def _doubts(seen: Sampled) -> Iterator[str]:
    """Why the energy of the samples may not be that of the run."""
    if seen.fewest < FEWEST_SAMPLES:
        yield f"run of {seen.duration:.1f} s is under {FEWEST_SAMPLES} samples"
    covered = min(_covered(trace, seen.duration) for trace in seen.traces)
    if covered < LEAST_COVERED:
        yield f"samples cover {100 * covered:.0f}% of the run"
    both = joules(seen)
    if both is not None and not both.agree:
        yield str(both)


def _interference(seen: Sampled) -> Iterator[str]:
    if any(seen.held_down(THERMAL)):
        yield "thermal throttling seen"
    if any(seen.held_down(HARDWARE_SLOWDOWN)):
        yield "hardware slowdown seen"
    if other_processes(seen.rows):
        yield "other processes on the GPU"


def _covered(trace: Trace, duration: float) -> float:
    """The part of the run between the first and the last sample of power."""
    times, _ = trace.known("power_w")
    return float(max(min(times[-1], duration) - max(times[0], 0.0), 0.0) / duration)
