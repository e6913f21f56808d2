"""A run seen by torch's profiler (Kineto): which kernel ran when, in which step, and what it
communicated."""

from __future__ import annotations

import bisect
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from workers.communicator import Communicator
from workers.device import synchronize
from workers.intervals import union
from workers.probes.kernels import Registry
from workers.probes.spans import StepOf, span_row
from workers.records import COMPUTE, SPANS, Call, SpanRow

STEP = re.compile(r"step/(\w+)/(\d+)")  # the annotation around a step: phase and number
LAUNCHES = frozenset({"cuda_runtime", "cuda_driver"})  # categories of events
YEAR_NS = 365 * 24 * 3600 * 10**9
ON_THE_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """A complete event ("ph": "X") of a Chrome trace.

    start: microseconds of the trace's own clock; duration: microseconds. correlation: the number
    that a launch and what it launched have in common.
    """

    name: str
    category: str
    start: float
    duration: float
    correlation: int | None


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel, copy or fill that ran on the GPU within a step.

    launched: when its launch was called, on the trace's clock; one graph's kernels have the same.
    start, end: on the clock of the node. All in microseconds.
    """

    name: str
    phase: str
    step: int
    launched: float
    start: float
    end: float


class Tracer:
    """A probe that runs the profiler around the whole run."""

    def __init__(self, communicator: Communicator) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)
        self._communicator = communicator
        self._calls: dict[StepOf, list[Call]] = {}
        self._kernels: list[Kernel] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Profile what runs inside, and read its kernels."""
        with self._profiler:
            yield
            synchronize(self._communicator.context.device)
        self._communicator.journal = None
        self._kernels = read_kernels(_export(self._profiler))

    @contextmanager
    def step(self, phase: str, index: int) -> Iterator[None]:
        """Mark a step in the trace, and keep the calls of the Communicator in it."""
        of = StepOf(self._communicator.context.rank, phase, index)
        self._communicator.journal = self._calls[of] = []
        with torch.profiler.record_function(f"step/{phase}/{index}"):
            yield
        self._communicator.journal = None

    def spans(self) -> pa.Table:
        """The spans table of the run."""
        registry = Registry.beside(self._communicator.backend.kernels)
        rank = self._communicator.context.rank
        return kernel_spans(rank, self._kernels, self._calls, registry)


# -- from kernels and calls to spans


def kernel_spans(
    rank: int, kernels: Sequence[Kernel], calls: Mapping[StepOf, Sequence[Call]], registry: Registry
) -> pa.Table:
    """The spans table of a rank, in order of start; calls that were not seen come last.

    calls: those of the Communicator by step, in the order they were made. Compute is merged where
    kernels touch or overlap.
    """
    steps: dict[StepOf, list[Kernel]] = {of: [] for of in calls}
    for kernel in kernels:
        steps.setdefault(StepOf(rank, kernel.phase, kernel.step), []).append(kernel)
    rows = [
        row
        for of, found in steps.items()
        for row in (
            *_compute_spans(of, found, registry),
            *_communication_spans(of, found, calls.get(of, ()), registry),
        )
    ]
    return SPANS.make(sorted(rows, key=_start))


def _start(row: SpanRow) -> float:
    return math.inf if row.start_us is None else row.start_us


def _compute_spans(of: StepOf, kernels: Iterable[Kernel], registry: Registry) -> Iterator[SpanRow]:
    computing = (one for one in kernels if not registry.of(one.name).operations)
    for span in union((kernel.start, kernel.end) for kernel in computing):
        yield span_row(of, COMPUTE, span)


def _communication_spans(
    of: StepOf, kernels: Iterable[Kernel], calls: Sequence[Call], registry: Registry
) -> Iterator[SpanRow]:
    """Each communicating kernel with its call. Where they do not agree, each kernel without a call
    and each call as one that was not seen."""
    found = sorted(
        (kernel for kernel in kernels if registry.of(kernel.name).operations),
        key=lambda kernel: (kernel.launched, kernel.start),
    )
    agree = match([registry.of(kernel.name).operations for kernel in found], calls)
    for kernel, call in zip(found, calls if agree else [None] * len(found), strict=True):
        known = registry.of(kernel.name)
        op = call.op if call else known.operations[-1]
        yield span_row(of, op, (kernel.start, kernel.end), call, fused=known.fused)
    for call in () if agree else calls:
        yield span_row(of, call.op, None, call)


def match(operations: Sequence[tuple[str, ...]], calls: Sequence[Call]) -> bool:
    """Whether the communicating kernels of a step are its calls, one by one.

    operations: what each kernel may carry out, in the order they were launched; kernels of one
    graph, which are launched together, in the order they ran. That is the order of the calls.
    """
    return len(operations) == len(calls) and all(
        call.op in able for able, call in zip(operations, calls, strict=True)
    )


# -- from a trace to kernels


class _Step(NamedTuple):
    """The annotation of a step; microseconds of the trace's clock."""

    start: float
    end: float
    phase: str
    number: int


class _Launch(NamedTuple):
    at: float
    step: _Step


def read_kernels(trace: Any) -> list[Kernel]:
    """The kernels of a Chrome trace (its JSON) that were launched inside a step, replayed graphs
    included.

    A kernel carries the correlation number of the call that launched it; that call lies inside a
    step's annotation. Raises KeyError where this is no Chrome trace.
    """
    # Within a year: a float has no room for nanoseconds since 1970, and all ranks have one base.
    origin = (int(trace.get("baseTimeNanoseconds", 0)) % YEAR_NS) / 1e3
    events = list(_events(trace["traceEvents"]))
    launches = _launches(events)
    return [
        _kernel(event, launches[event.correlation], origin)
        for event in events
        if event.category in ON_THE_GPU and event.correlation in launches
    ]


def _events(entries: Iterable[Any]) -> Iterator[TraceEvent]:
    """The steps, launches and kernels among the entries of a Chrome trace."""
    wanted = {*LAUNCHES, *ON_THE_GPU, "user_annotation"}
    for entry in entries:
        if entry.get("ph") == "X" and entry.get("cat") in wanted:
            correlation = entry.get("args", {}).get("correlation")
            yield TraceEvent(entry["name"], entry["cat"], entry["ts"], entry["dur"], correlation)


def _launches(events: Iterable[TraceEvent]) -> dict[int | None, _Launch]:
    """Correlation number -> the launch that has it, of those inside a step."""
    steps = _steps(events)
    starts = [step.start for step in steps]
    launches: dict[int | None, _Launch] = {}
    for event in events:
        if event.category in LAUNCHES and event.correlation is not None:
            i = bisect.bisect_right(starts, event.start) - 1
            if i >= 0 and event.start <= steps[i].end:
                launches[event.correlation] = _Launch(event.start, steps[i])
    return launches


def _steps(events: Iterable[TraceEvent]) -> list[_Step]:
    annotations = (event for event in events if event.category == "user_annotation")
    return sorted(
        _Step(event.start, event.start + event.duration, named[1], int(named[2]))
        for event in annotations
        if (named := STEP.fullmatch(event.name))
    )


def _kernel(event: TraceEvent, launch: _Launch, origin: float) -> Kernel:
    start, step = origin + event.start, launch.step
    end = start + event.duration
    return Kernel(event.name, step.phase, step.number, launch.at, start, end)


def _export(profiler: torch.profiler.profile) -> Any:
    """The Chrome trace of a profile, as its JSON."""
    handle, path = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    finally:
        os.unlink(path)
