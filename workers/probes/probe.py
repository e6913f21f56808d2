"""What the generate loop tells a probe: the one that sees nothing, and the one for a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import pyarrow as pa
import torch

from workers.communicator import Communicator
from workers.intervals import Span, subtract, union
from workers.records import COMPUTE, SPANS, Call, to_table

Step = tuple[str, int, float, float]  # phase, index, start, end


class Probe(Protocol):
    """Watches one run."""

    def watching(self) -> AbstractContextManager[None]:
        """Around the whole run."""
        ...

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        """Around one step, its waiting for other stages included."""
        ...

    def spans(self) -> pa.Table | None:
        """What was seen, in the schema SPANS; after the run."""
        ...


class Blind:
    """For timed runs: sees nothing, costs nothing."""

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def spans(self) -> pa.Table | None:
        return None


class Stopwatch:
    """On a CPU, where a collective blocks its caller: what is not spent in the Communicator is
    compute."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._steps: list[Step] = []
        self._calls: list[Call] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._communicator.journal = self._calls
        try:
            yield
        finally:
            self._communicator.journal = None

    @contextmanager
    def step(self, phase: str, index: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._steps.append((phase, index, start, time.perf_counter()))

    def spans(self) -> pa.Table:
        blocked = [(call.start, call.end) for call in self._calls]
        return host_spans(self._communicator.context.rank, self._steps, self._calls, blocked)


def host_spans(
    rank: int, steps: Iterable[Step], calls: Iterable[Call], blocked: Iterable[Span]
) -> pa.Table:
    """SPANS of a run whose calls were timed on the host. Times in seconds of `time.perf_counter`,
    in order.

    calls: from start to completion; blocked: when the host itself could not go on. The rest of a
    step is compute.
    """
    held, pending = union(blocked), sorted(calls, key=lambda call: call.start)
    rows: list[dict[str, Any]] = []

    def add(phase: str, index: int, kind: str, start: float, end: float, **call: Any) -> None:
        at = {"start_us": start * 1e6, "end_us": end * 1e6}
        rows.append({"rank": rank, "phase": phase, "step": index, "kind": kind, **at, **call})

    for phase, index, start, end in steps:
        for a, b in subtract([(start, end)], held):
            add(phase, index, COMPUTE, a, b)
        for call in (call for call in pending if start <= call.start < end):
            add(
                phase,
                index,
                call.op,
                call.start,
                call.end,
                axis=call.axis,
                call_phase=call.phase,
                bytes=call.bytes,
            )
    return to_table(rows, SPANS)


def probe_for(observe: bool, device: torch.device, communicator: Communicator) -> Probe:
    if not observe:
        return Blind()
    if device.type == "cpu":
        return Stopwatch(communicator)
    from workers.probes.trace import Tracer

    return Tracer(communicator)
