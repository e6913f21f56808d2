"""What is asked of a device the same way by every engine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

import torch


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory(devices: Sequence[torch.device]) -> int:
    """Bytes: the most that was allocated on any of `devices` since `reset_peak`; on CPU the
    process's peak resident set."""
    if devices[0].type == "cuda":
        return max(torch.cuda.max_memory_allocated(device) for device in devices)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Start the measure of `peak_memory` anew; on CPU it goes on from the start of the process."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
