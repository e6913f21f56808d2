"""What is used of NVML in several places: the names of the reasons for low clocks, and a query that
may be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
