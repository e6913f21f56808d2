"""Units as people write and read them. Bytes are decimal: 1 GB = 10^9 bytes, as in a card's data
sheet; GiB is accepted too."""

from __future__ import annotations

import re

from orchestrator.errors import UserError

LEAST_BARE = 10**6  # bytes; a smaller number without a unit is one whose unit was forgotten
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def parse_bytes(text: str) -> int:
    """'141GB' -> 141e9, '80GiB' -> 80 * 2^30, '141000000000' -> 141e9. Raises UserError for
    anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match:
        raise UserError(f"'{text}' is not an amount of memory; write it as 141GB or 80GiB")
    number, prefix, binary = match.groups()
    if text.strip()[-1].isdigit() and float(number) < LEAST_BARE:
        raise UserError(f"'{text}' bytes of memory are next to nothing; write a unit, as in 141GB")
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix])


def device_ms(device_name: str | None) -> str:
    """The unit of a device's time: GPU-ms, or worker-ms on a CPU."""
    return "worker-ms" if is_cpu(device_name) else "GPU-ms"


def is_cpu(device_name: str | None) -> bool:
    """Whether a device of that name is a CPU."""
    return (device_name or "").lower() == "cpu"
