"""Power, energy and utilisation of a run, from what its ranks sampled, and whether these figures
can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from workers.messages import RankReport
from workers.records import column

FIELDS = (
    column("mean_gpu_utilization_pct", pa.float64(), "%"),
    column("mean_power_w", pa.float64(), "W"),
    column("peak_temperature_c", pa.float64(), "degC"),
    column("energy_j", pa.float64(), "J"),
    column("energy_counter_j", pa.float64(), "J"),
    column("joules_per_output_token", pa.float64(), "J"),
    column("power_valid", pa.bool_()),
    column("power_reasons", pa.string()),
    column("throttled", pa.bool_()),
)
# Of these the comparison tells the mean of the runs whose power is valid.
COMPARED = tuple(
    field
    for field in FIELDS
    if field.name in ("mean_power_w", "energy_j", "joules_per_output_token")
)

# of a GPU during a run, below which power is not to be believed, whatever the energy counter says
FEWEST_SAMPLES = 10
LEAST_COVERED = 0.95  # of a run's duration, from a GPU's first sample to its last
MOST_APART = 0.10  # the energy of the samples and that of the counter
# Bits of NVML's clocks event reasons.
HARDWARE_SLOWDOWN = 0x08 | 0x80
THERMAL = 0x20 | 0x40
THROTTLING = 0x04 | THERMAL | HARDWARE_SLOWDOWN  # the power cap included


@dataclass(frozen=True, slots=True)
class Trace:
    """The samples of one GPU. A figure that was not read is nan."""

    times: np.ndarray
    columns: Mapping[str, np.ndarray]

    def known(self, name: str, duration: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Times and values where `name` is known; with a duration only those within the run."""
        values = self.columns[name]
        kept = ~np.isnan(values)
        if duration is not None:
            kept &= (self.times >= 0) & (self.times <= duration)
        return self.times[kept], values[kept]


NUMBERS = ("gpu_utilization_pct", "power_w", "energy_mj", "temperature_c", "throttle_reasons")


def of_telemetry(
    reports: Iterable[RankReport], duration: float, output_tokens: int, num_gpus: int
) -> dict[str, Any]:
    """FIELDS of a run of `duration` seconds that made `output_tokens`. All None where no GPU was
    sampled, as on a CPU.

    energy_j: the trapezoid of power over the run, summed over GPUs; beyond a GPU's samples its
    power is held. None unless every GPU told its power. mean_power_w: that over the duration.
    energy_counter_j: by the GPUs' own counters between the first and last sample in the run.
    mean_gpu_utilization_pct: over samples, then over GPUs. throttled: clocks were held down for
    power, heat or a fault. power_valid is False, for `power_reasons`, where energy is not to be set
    against another run's.
    """
    rows = [
        row
        for report in reports
        if report.telemetry is not None
        for row in report.telemetry.to_pylist()
    ]
    traces = _traces(row for row in rows if row["gpu_uuid"] is not None)
    if not traces or duration <= 0:
        return {field.name: None for field in FIELDS}
    missing = _missing(traces, num_gpus)
    energy = (
        None
        if missing
        else sum(energy_j(*trace.known("power_w"), 0.0, duration) for trace in traces)
    )
    reasons = [*(missing or _doubts(traces, duration)), *_interference(rows, traces, duration)]
    return {
        "mean_gpu_utilization_pct": _mean(
            _over_gpus(traces, "gpu_utilization_pct", duration, np.mean)
        ),
        "mean_power_w": None if energy is None else energy / duration,
        "peak_temperature_c": max(
            _over_gpus(traces, "temperature_c", duration, np.max), default=None
        ),
        "energy_j": energy,
        "energy_counter_j": None if len(traces) < num_gpus else _counted(traces, duration),
        "joules_per_output_token": energy / output_tokens
        if energy is not None and output_tokens
        else None,
        "power_valid": not reasons,
        "power_reasons": "; ".join(reasons) or None,
        "throttled": _seen(traces, duration, THROTTLING),
    }


def energy_j(times: np.ndarray, watts: np.ndarray, start: float, end: float) -> float:
    """The integral in joules of `watts` at `times` (seconds, rising) from `start` to `end`, by
    trapezoid.

    Power at the two ends is interpolated; before the first sample and after the last it is held.
    """
    inside = times[(times > start) & (times < end)]
    grid = np.concatenate([[start], inside, [end]])
    power = np.interp(grid, times, watts)
    return float(np.sum(np.diff(grid) * (power[1:] + power[:-1]) / 2))


def _traces(rows: Iterable[Mapping[str, Any]]) -> list[Trace]:
    """By GPU; one that two processes have sampled counts once."""
    gpus: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for row in rows:
        gpus.setdefault(row["gpu_uuid"], {}).setdefault(row["rank"], []).append(row)
    return [_trace(next(iter(ranks.values()))) for ranks in gpus.values()]


def _trace(rows: Sequence[Mapping[str, Any]]) -> Trace:
    columns = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)
        for name in NUMBERS
    }
    return Trace(np.array([row["time_s"] for row in rows]), columns)


def _missing(traces: Sequence[Trace], num_gpus: int) -> list[str]:
    """Why there is no energy of the whole layout; empty where there is."""
    unseen, mute = (
        num_gpus - len(traces),
        sum(not len(trace.known("power_w")[0]) for trace in traces),
    )
    if unseen > 0:
        return [f"no samples of {unseen} of {num_gpus} GPUs"]
    if mute:
        return [
            "no power counter"
            if mute == num_gpus
            else f"no power counter on {mute} of {num_gpus} GPUs"
        ]
    return []


def _doubts(traces: Sequence[Trace], duration: float) -> Iterable[str]:
    """Why the energy of the samples may not be that of the run."""
    if min(len(trace.known("power_w", duration)[0]) for trace in traces) < FEWEST_SAMPLES:
        yield f"run of {duration:.1f} s is under {FEWEST_SAMPLES} samples"
    covered = min(_covered(trace, duration) for trace in traces)
    if covered < LEAST_COVERED:
        yield f"samples cover {100 * covered:.0f}% of the run"
    counted, sampled = _counted(traces, duration), _sampled(traces, duration)
    if counted and abs(sampled - counted) > MOST_APART * counted:
        yield f"{sampled:.0f} J by the samples, {counted:.0f} J by the energy counter"


def _interference(
    rows: Sequence[Mapping[str, Any]], traces: Sequence[Trace], duration: float
) -> Iterable[str]:
    if _seen(traces, duration, THERMAL):
        yield "thermal throttling seen"
    if _seen(traces, duration, HARDWARE_SLOWDOWN):
        yield "hardware slowdown seen"
    if other_processes(rows):
        yield "other processes on the GPU"


def other_processes(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many processes beside those that report were seen on their GPUs.

    Where none of ours is known by its number, NVML counts in another namespace (a container), and
    as many as report are ours.
    """
    seen: set[int] = set()
    ours: set[int] = set()
    for row in rows:
        ours.add(row["process_id"])
        seen.update(row["gpu_process_ids"] or ())
    return len(seen - ours) if seen & ours else max(len(seen) - len(ours), 0)


def _covered(trace: Trace, duration: float) -> float:
    """The part of the run between the first and the last sample of power."""
    times, _ = trace.known("power_w")
    return max(min(times[-1], duration) - max(times[0], 0.0), 0.0) / duration


def _counted(traces: Sequence[Trace], duration: float) -> float | None:
    """Joules by the GPUs' counters between their first and last sample within the run; None where
    one has none."""
    spans = [trace.known("energy_mj", duration)[1] for trace in traces]
    return (
        sum(float(values[-1] - values[0]) for values in spans) / 1e3
        if all(len(values) > 1 for values in spans)
        else None
    )


def _sampled(traces: Sequence[Trace], duration: float) -> float:
    """Joules by the samples over the same spans as `_counted`; 0 where there are none."""
    spans = [trace.known("energy_mj", duration)[0] for trace in traces]
    return sum(
        energy_j(*t.known("power_w"), s[0], s[-1])
        for t, s in zip(traces, spans, strict=True)
        if len(s) > 1
    )


def _seen(traces: Sequence[Trace], duration: float, bits: int) -> bool | None:
    """Whether any of `bits` was set in the clocks event reasons during the run; None where no GPU
    tells them."""
    values = [value for trace in traces for value in trace.known("throttle_reasons", duration)[1]]
    return any(int(value) & bits for value in values) if values else None


def _over_gpus(
    traces: Sequence[Trace], name: str, duration: float, function: Callable[[np.ndarray], Any]
) -> list[float]:
    """`function` of each GPU's values during the run; GPUs without any are left out."""
    known = [trace.known(name, duration)[1] for trace in traces]
    return [float(function(values)) for values in known if len(values)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
