"""What held a GPU's clocks or power down while it was measured, according to NVML."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workers.device import GPU_IDLE, answer_of, throttle_names
from workers.probes.nvml_readings import Readings
from workers.probes.telemetry import Recording, Sampler, find_gpu

LOW_CLOCK = 0.95  # of the highest clock; a GPU that computes little reaches more


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a GPU may go, W and MHz. None: NVML does not report it."""

    power_w: float | None
    default_power_w: float | None
    sm_clock_mhz: int | None


@dataclass(frozen=True, slots=True)
class Watched:
    """A GPU that is sampled while it is measured."""

    limits: Limits
    recording: Recording

    def held_down(self) -> list[str]:
        """What has held clocks or power down so far, a clause for each."""
        return held_down(self.limits, [sample.readings for sample in [*self.recording.samples]])


@contextlib.contextmanager
def watching(device: torch.device) -> Iterator[Watched | None]:
    """Sample a GPU through NVML; None for a CPU, or where NVML does not know the GPU."""
    watched = _watch(device) if device.type == "cuda" else None
    try:
        yield watched
    finally:
        if watched is not None:
            watched.recording.stop()


def _watch(device: torch.device) -> Watched | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = find_gpu(pynvml, device.index or 0, torch.cuda.get_device_properties(device))
    except Exception:  # no package, no driver, no permission
        return None
    if gpu is None:
        return None
    return Watched(limits(pynvml, gpu.handle), Sampler([gpu], pynvml).start())


def limits(lib: Any, handle: Any) -> Limits:
    """What NVML, the module `lib`, says of a GPU."""
    power = answer_of(lib, lib.nvmlDeviceGetEnforcedPowerLimit, handle)
    default = answer_of(lib, lib.nvmlDeviceGetPowerManagementDefaultLimit, handle)
    clock = answer_of(lib, lib.nvmlDeviceGetMaxClockInfo, handle, lib.NVML_CLOCK_SM)
    return Limits(_watts(power), _watts(default), clock)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def held_down(limits: Limits, samples: Sequence[Readings]) -> list[str]:
    """A clause for each thing that held clocks or power down in `samples`: a power limit below the
    default, NVML's reasons for low clocks but for idling, and clocks that never came near the
    highest."""
    return [*_capped(limits), *_throttled(samples), *_slow(limits, samples)]


def _capped(limits: Limits) -> Iterator[str]:
    power, default = limits.power_w, limits.default_power_w
    if power is not None and default is not None and power < default:
        yield f"power limit {power:.0f} W, by default {default:.0f} W"


def _throttled(samples: Sequence[Readings]) -> Iterator[str]:
    masks = [mask for one in samples if (mask := one.get("throttle_reasons")) is not None]
    reasons = Counter(name for mask in masks for name in throttle_names(mask & ~GPU_IDLE))
    for name, count in reasons.items():
        yield f"{name} in {100 * count / len(masks):.0f}% of the samples"


def _slow(limits: Limits, samples: Sequence[Readings]) -> Iterator[str]:
    clocks = [clock for one in samples if (clock := one.get("sm_clock_mhz")) is not None]
    if clocks and limits.sm_clock_mhz and max(clocks) < LOW_CLOCK * limits.sm_clock_mhz:
        yield f"SM clock at most {max(clocks)} MHz, of {limits.sm_clock_mhz} MHz"
