"""The protocol by which the generate loop reports to a probe, a probe that records nothing, and the
probe for a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pyarrow as pa

from workers.intervals import Span, subtract, union
from workers.probes.spans import StepOf, span_row
from workers.records import COMPUTE, SPANS, Call, SpanRow

if TYPE_CHECKING:
    import torch

    from workers.communicator import Communicator


class TimedStep(NamedTuple):
    """A step: its phase, its number in the run, its start and end in seconds of
    `time.perf_counter`."""

    phase: str
    number: int
    start: float
    end: float


class Probe(Protocol):
    """Watches one run."""

    def watching(self) -> AbstractContextManager[None]:
        """Around the whole run."""
        ...

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        """Around one step, its waiting for other stages included."""
        ...

    def spans(self) -> pa.Table | None:
        """The spans table of what was seen, once the run is over; None: nothing was watched."""
        ...


class Blind:
    """For timed runs: records nothing and costs nothing."""

    def watching(self) -> AbstractContextManager[None]:
        """Does nothing."""
        return nullcontext()

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        """Does nothing."""
        return nullcontext()

    def spans(self) -> pa.Table | None:
        """None."""
        return None


class Stopwatch:
    """For a CPU, where a collective blocks its caller: time that is not spent in the Communicator
    is compute."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._steps: list[TimedStep] = []
        self._calls: list[Call] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the Communicator's calls."""
        self._communicator.journal = self._calls
        try:
            yield
        finally:
            self._communicator.journal = None

    @contextmanager
    def step(self, phase: str, index: int) -> Iterator[None]:
        """Keep when the step began and ended."""
        start = time.perf_counter()
        yield
        self._steps.append(TimedStep(phase, index, start, time.perf_counter()))

    def spans(self) -> pa.Table:
        """The spans table of the run."""
        blocked = [(call.start, call.end) for call in self._calls]
        return host_spans(self._communicator.context.rank, self._steps, self._calls, blocked)


def host_spans(
    rank: int, steps: Iterable[TimedStep], calls: Iterable[Call], blocked: Iterable[Span]
) -> pa.Table:
    """The spans table of a run whose calls were timed on the host.

    Times are seconds of `time.perf_counter`, steps are in order. calls: from start to completion.
    blocked: when the host itself could not go on. The rest of a step is compute.
    """
    held, pending = union(blocked), sorted(calls, key=lambda call: call.start)
    rows: list[SpanRow] = []
    for step in steps:
        of = StepOf(rank, step.phase, step.number)
        free = subtract([(step.start, step.end)], held)
        inside = [call for call in pending if step.start <= call.start < step.end]
        rows += [span_row(of, COMPUTE, _microseconds(span)) for span in free]
        rows += [
            span_row(of, call.op, _microseconds((call.start, call.end)), call) for call in inside
        ]
    return SPANS.make(rows)


def _microseconds(span: Span) -> Span:
    return span[0] * 1e6, span[1] * 1e6


def probe_for(observe: bool, device: torch.device, communicator: Communicator) -> Probe:
    """The probe of a run: none for a timed one, timers for an observed one on a CPU, the profiler
    on a GPU."""
    if not observe:
        return Blind()
    if device.type == "cpu":
        return Stopwatch(communicator)
    from workers.probes.trace import Tracer

    return Tracer(communicator)
