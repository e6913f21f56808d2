"""Ranges of the host by its own clock, for profiles of a device alone.

Torch's profiler keeps ranges of the host only beside its operators. To keep those slows a host that
runs a model operator by operator, and with it the device that waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from workers.probes.trace import ANNOTATION, TraceEvent, origin_us


class Marks:
    """The ranges of this process while they are kept, by the clock of `time.time_ns`, which is that
    of Kineto."""

    def __init__(self) -> None:
        self._found: list[tuple[str, int, int]] = []
        self._are_kept = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the ranges that begin inside."""
        self._are_kept = True
        try:
            yield
        finally:
            self._are_kept = False

    def forget(self) -> None:
        """Keep none of before."""
        self._found.clear()

    def range(self, name: str) -> AbstractContextManager[object]:
        """A range: kept here, or else a range of torch's profiler."""
        return self._marked(name) if self._are_kept else torch.profiler.record_function(name)

    def events(self, origin: float) -> list[TraceEvent]:
        """The ranges as annotations of a trace. origin: of `origin_us`."""
        return [
            TraceEvent(name, ANNOTATION, origin_us(began) - origin, (ended - began) / 1e3, None)
            for name, began, ended in self._found
        ]

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        began = time.time_ns()
        yield
        self._found.append((name, began, time.time_ns()))
