"""Main memory of this machine: how much there is, and whether it ran out."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from orchestrator.cluster import hardware
from workers.units import format_bytes

VMSTAT = Path("/proc/vmstat")
GROUP = Path("/sys/fs/cgroup")
FULL = 0.97  # of it, where a worker that was killed was most likely killed for lack of it


def main_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or less where a control group
    says so."""
    total = hardware.host().memory_bytes
    limit = _limit()
    return total if limit is None else min(total, limit)


class MemoryWatch:
    """What was in use at the most while workers ran, and how many processes the kernel had ended
    for lack of memory before."""

    def __init__(self) -> None:
        self._kills, self._most = oom_kills(), used_memory()

    def look(self) -> None:
        """See how much is in use."""
        self._most = max(self._most, used_memory())

    def lack(self) -> str | None:
        """That main memory ran out, and how much was in use; None where it most likely did not."""
        there = main_memory()
        is_full = _limit() is None and self._most >= FULL * there  # else files are in it too
        if not is_full and oom_kills() <= self._kills:
            return None
        return f"main memory ran out: {format_bytes(self._most)} of {format_bytes(there)}"


def oom_kills() -> int:
    """Processes that the kernel has ended for lack of memory so far; 0 where it does not say."""
    texts = [_read(file) for file in (VMSTAT, GROUP / "memory.events")]
    return sum(int(count) for text in texts for count in re.findall(r"(?m)^oom_kill (\d+)$", text))


def used_memory() -> int:
    """Bytes of main memory in use: of the machine, or of the control group where that has a
    limit."""
    current = _read(GROUP / "memory.current").strip()
    if _limit() is not None and current.isdigit():
        return int(current)
    seen = psutil.virtual_memory()
    return int(seen.total - seen.available)


def _limit() -> int | None:
    text = _read(GROUP / "memory.max").strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
