"""What the generate loop tells a probe, and the probe that listens to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch

from workers.communicator import Communicator
from workers.plan import Overhead


class Probe(Protocol):
    """Watches one run."""

    def watching(self) -> AbstractContextManager[None]:
        """Around the whole run."""
        ...

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        """Around one step, its waiting for other stages included."""
        ...

    def overheads(self) -> Sequence[Overhead]:
        """What was seen, a row per phase; after the run."""
        ...


class Blind:
    """For timed runs: sees nothing, costs nothing."""

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def overheads(self) -> Sequence[Overhead]:
        return ()


class Stopwatch:
    """On a CPU, where collectives block: the wall time of steps, and of what the Communicator spent inside them.

    The first step of a phase is left out where there are more: it holds what only happens once.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._steps: dict[str, list[tuple[float, float, float]]] = {}

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def step(self, phase: str, index: int) -> Iterator[None]:
        import time

        timers = self._communicator.timers
        start, transfer, bubble = time.perf_counter(), timers.transfer_s, timers.bubble_s
        yield
        row = (time.perf_counter() - start, timers.transfer_s - transfer, timers.bubble_s - bubble)
        self._steps.setdefault(phase, []).append(row)

    def overheads(self) -> Sequence[Overhead]:
        out = []
        for phase, rows in self._steps.items():
            kept = rows[1:] if len(rows) > 1 else rows
            step, transfer, bubble = (1e3 * sum(column) / len(kept) for column in zip(*kept, strict=True))
            out.append(Overhead(phase, len(kept), step, transfer, transfer, bubble))
        return out


def probe_for(observe: bool, device: torch.device, communicator: Communicator) -> Probe:
    if not observe:
        return Blind()
    if device.type == "cpu":
        return Stopwatch(communicator)
    from workers.probes.trace import Tracer

    return Tracer()
