"""What every engine needs of a device, with one function for GPU and CPU. Imports without torch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# An H200's clock under load; a delay is an injected disturbance and need not be exact.
SLEEP_CYCLES_PER_SECOND = 1.98e9


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
