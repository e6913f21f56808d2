"""What every engine asks of a device in the same way."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

import torch


def device_name(device: torch.device) -> str:
    """The GPU's name as CUDA gives it; "cpu" for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory(devices: Sequence[torch.device]) -> int:
    """Bytes: the most that was allocated on any of `devices` since `reset_peak`; on a CPU the peak
    resident set of the process."""
    if devices[0].type == "cuda":
        return max(torch.cuda.max_memory_allocated(device) for device in devices)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Begin what `peak_memory` measures; on a CPU it counts from the start of the process all the
    same."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Have the host wait until the device has done all that was launched; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize()
