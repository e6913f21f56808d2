"""Units as people read them. Bytes are decimal: 1 GB = 10^9 bytes, as in a card's data sheet."""

from __future__ import annotations


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def significant(value: float, digits: int) -> str:
    """With so many significant digits, and whole where it has more: 0.0123, 12.3, 12345."""
    return f"{value:.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """To a digit or two: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def device_ms(device_name: str | None) -> str:
    """The unit of a device's time: GPU-ms, or worker-ms on a CPU."""
    return "worker-ms" if is_cpu(device_name) else "GPU-ms"


def is_cpu(device_name: str | None) -> bool:
    """Whether a device of that name is a CPU."""
    return (device_name or "").lower() == "cpu"


def unnamed(device: str) -> str | None:
    """The name of a device of that kind ("cuda", "cpu") that has not told it; None of a GPU."""
    return device if is_cpu(device) else None
