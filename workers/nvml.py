"""What holds a GPU's clocks down: the bits of NVML's "clocks event reasons", which it called
throttle reasons before."""

from __future__ import annotations

# Bit -> its name. Source: nvmlClocksEventReasons in nvml.h.
THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "application_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
}
POWER_CAP = 0x004  # the usual limit of a GPU at full load
HARDWARE_SLOWDOWN = 0x008 | 0x080
THERMAL = 0x020 | 0x040


def throttle_names(mask: int) -> list[str]:
    """The names of the bits set in `mask`, lowest first; "bit_9" where a bit has no name here."""
    bits = (1 << i for i in range(mask.bit_length()) if mask >> i & 1)
    return [THROTTLE_REASONS.get(bit, f"bit_{bit.bit_length() - 1}") for bit in bits]
