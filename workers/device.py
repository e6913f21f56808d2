"""What every engine needs of a device, with one function for GPU and CPU, and what several places
need of NVML. Imports without torch."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# An H200's clock under load; a delay is an injected disturbance and need not be exact.
SLEEP_CYCLES_PER_SECOND = 1.98e9

# Bits of NVML's "clocks event reasons". The last two have a name only among what NVML called
# "throttle reasons" before.
THROTTLE_REASONS = {
    1 << 0: "gpu_idle",
    1 << 1: "application_clocks",
    1 << 2: "sw_power_cap",
    1 << 3: "hw_slowdown",
    1 << 4: "sync_boost",
    1 << 5: "sw_thermal",
    1 << 6: "hw_thermal",
    1 << 7: "hw_power_brake",
    1 << 8: "display_clocks",
    1 << 9: "board_limit",
    1 << 10: "reliability",
}

# Masks of what a reason means for a measurement.
GPU_IDLE = 1 << 0
POWER_CAP = 1 << 2
HARDWARE_SLOWDOWN = 1 << 3 | 1 << 7
THERMAL = 1 << 5 | 1 << 6
CLOCK_SETTINGS = 1 << 1 | 1 << 4 | 1 << 8
BOARD_LIMITS = 1 << 9 | 1 << 10


@dataclass(frozen=True, slots=True)
class DevicesNow:
    """The GPUs of a machine that processes use, together.

    utilization_pct: mean over them. power_w: their sum. memory_bytes: that of the fullest. None
    where the driver does not say.
    """

    utilization_pct: float | None
    power_w: float | None
    memory_bytes: int


def devices_now(nvml: Any, handles: Sequence[Any]) -> DevicesNow | None:
    """What NVML says of `handles`; None where no process uses any of them."""
    used = [
        one for one in handles if answer_of(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, one)
    ]
    if not used:
        return None
    rates = [answer_of(nvml, nvml.nvmlDeviceGetUtilizationRates, one) for one in used]
    milliwatts = [answer_of(nvml, nvml.nvmlDeviceGetPowerUsage, one) for one in used]
    memory = [answer_of(nvml, nvml.nvmlDeviceGetMemoryInfo, one) for one in used]
    return DevicesNow(
        None if None in rates else sum(rate.gpu for rate in rates) / len(rates),
        None if None in milliwatts else sum(milliwatts) / 1000,
        max((one.used for one in memory if one is not None), default=0),
    )


def device_name(device: torch.device) -> str:
    """The GPU's name as CUDA gives it; "cpu" for a CPU."""
    if device.type != "cuda":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def peak_memory(devices: Sequence[torch.device]) -> int:
    """Bytes: the most that was allocated on any of `devices` since `reset_peak`; on a CPU the peak
    resident set of the process."""
    if devices[0].type == "cuda":
        import torch

        return max(torch.cuda.max_memory_allocated(device) for device in devices)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(devices: Sequence[torch.device]) -> list[int]:
    """Have `peak_memory` count from here, and return the bytes that are allocated on each GPU. On a
    CPU it always counts from the start of the process."""
    allocated = []
    for device in devices:
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            allocated.append(torch.cuda.memory_allocated(device))
    return allocated


def memory_swing(devices: Sequence[torch.device], before: Sequence[int]) -> int | None:
    """Bytes by which the most that was allocated on any of `devices` is above what was there
    `before`, as `reset_peak` has returned it; None on a CPU."""
    rises = [peak_memory([one]) - there for one, there in zip(devices, before, strict=False)]
    return max(rises, default=None)


def num_cores() -> int:
    """Cores of this node that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synchronize(device: torch.device) -> None:
    """Have the host wait until the device has done all that was launched; a CPU always has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def to_host(x: torch.Tensor) -> torch.Tensor:
    """`x` on the host. It is complete once the device has done what was launched so far; the host
    does not wait for it."""
    if x.device.type == "cpu":
        return x
    import torch

    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def idle(device: torch.device, seconds: float) -> None:
    """Have the device do nothing for about `seconds`; on a GPU the host does not wait."""
    if device.type == "cpu":
        time.sleep(seconds)
        return
    import torch

    torch.cuda._sleep(int(seconds * SLEEP_CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]


@contextmanager
def counted(device: torch.device) -> Iterator[None]:
    """Nsight Compute counts the kernels that are launched inside, where it watches this process."""
    if device.type == "cpu":
        yield
        return
    import torch

    synchronize(device)
    with torch.cuda.profiler.profile():  # type: ignore[no-untyped-call]
        yield
        synchronize(device)


def throttle_names(mask: int) -> list[str]:
    """The names of the bits set in NVML's clocks event reasons, lowest bit first; "bit_11" where a
    bit has no name here."""
    bits = (1 << place for place in range(mask.bit_length()))
    return [THROTTLE_REASONS.get(bit, f"bit_{bit.bit_length() - 1}") for bit in bits if mask & bit]


def answer_of(nvml: Any, function: Callable[..., Any], *arguments: object) -> Any:
    """The answer of `function` of NVML; None where this GPU or driver does not support it."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None
