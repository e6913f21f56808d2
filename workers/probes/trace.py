"""A run seen by torch's profiler (Kineto): which kernel ran when, in which step, and what it
communicated."""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from workers.communicator import Communicator
from workers.device import synchronize
from workers.intervals import Span, union
from workers.probes.spans import StepOf, span_row
from workers.records import COMPUTE, SPANS, Call, SpanRow

ANY_OPERATION = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "recv", "other")
# The registry of kernels that communicate: a part of the kernel's name -> the operations it may
# carry out. The first part that a name contains counts. The last operation is what a kernel is
# booked as where its call is not known.
COMMUNICATION_KERNELS = {
    # NCCL: ncclDevKernel_ or, on symmetric memory, ncclSymkDevKernel_.
    "DevKernel_AllReduce": ("all_reduce",),
    "DevKernel_AllGather": ("all_gather",),
    "DevKernel_ReduceScatter": ("reduce_scatter",),
    "DevKernel_Broadcast": ("broadcast",),
    "DevKernel_SendRecv": ("send", "recv"),
    # torch's symmetric memory (CUDA), and the Triton kernels that are named after it.
    "one_shot_all_reduce": ("all_reduce",),
    "two_shot_all_reduce": ("all_reduce",),
    "multimem_all_gather": ("all_gather",),
    "multimem_": ("all_reduce",),
    # vLLM's custom all-reduce, in one stage and in two.
    "cross_device_reduce_": ("all_reduce",),
    # FlashInfer and TensorRT-LLM: an all-reduce and the norm after it in one kernel.
    "allreduce_fusion": ("all_reduce",),
    # NCCL's Generic kernels, and NVSHMEM's: they carry out any operation.
    "nccl": ANY_OPERATION,
    "nvshmem": ANY_OPERATION,
    # Triton kernels of any other name.
    "all_reduce": ("all_reduce",),
    "all_gather": ("all_gather",),
    "reduce_scatter": ("reduce_scatter",),
    # A copy from one GPU's memory to another's.
    "Memcpy PtoP": ("send", "recv", "all_gather", "broadcast", "other"),
}
STEP_PREFIX = "step/"  # of the annotation around a step: step/PHASE/NUMBER
LAUNCHES = frozenset({"cuda_runtime", "cuda_driver"})  # categories of events
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

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that it may carry out; () for compute."""
        return next((ops for part, ops in COMMUNICATION_KERNELS.items() if part in self.name), ())


class Tracer:
    """A probe that runs the profiler around the whole run."""

    def __init__(self, communicator: Communicator) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)
        self._communicator = communicator
        self._calls: dict[int, list[Call]] = {}
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
        self._communicator.journal = self._calls[index] = []
        with torch.profiler.record_function(f"{STEP_PREFIX}{phase}/{index}"):
            yield
        self._communicator.journal = None

    def spans(self) -> pa.Table:
        """The spans table of the run."""
        return kernel_spans(self._communicator.context.rank, self._kernels, self._calls)


# -- from kernels and calls to spans


def kernel_spans(
    rank: int, kernels: Sequence[Kernel], calls: Mapping[int, Sequence[Call]]
) -> pa.Table:
    """The spans table of a rank, in order of start.

    calls: those of the Communicator by step, in the order they were made. Compute is merged where
    kernels touch or overlap.
    """
    rows = [*_compute_spans(rank, kernels), *_communication_spans(rank, kernels, calls)]
    return SPANS.make(sorted(rows, key=lambda row: row.start_us))


def _compute_spans(rank: int, kernels: Iterable[Kernel]) -> Iterator[SpanRow]:
    compute: dict[StepOf, list[Span]] = defaultdict(list)
    for kernel in kernels:
        if not kernel.operations:
            compute[StepOf(rank, kernel.phase, kernel.step)].append((kernel.start, kernel.end))
    for of, spans in compute.items():
        yield from (span_row(of, COMPUTE, span) for span in union(spans))


def _communication_spans(
    rank: int, kernels: Iterable[Kernel], calls: Mapping[int, Sequence[Call]]
) -> Iterator[SpanRow]:
    by_step: dict[int, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        if kernel.operations:
            by_step[kernel.step].append(kernel)
    for step, found in by_step.items():
        for kernel, call in match(found, calls.get(step, ())):
            op = call.op if call else kernel.operations[-1]
            of = StepOf(rank, kernel.phase, step)
            yield span_row(of, op, (kernel.start, kernel.end), call)


def match(kernels: Iterable[Kernel], calls: Sequence[Call]) -> Iterator[tuple[Kernel, Call | None]]:
    """Each communicating kernel of a step with its call, in the order they were launched; kernels
    of one graph, which are launched together, in the order they ran.

    That is the order of the calls. Where number or operations of the two do not agree, no kernel
    is given a call: then its name alone says what it does.
    """
    ordered = sorted(kernels, key=lambda kernel: (kernel.launched, kernel.start))
    agree = len(ordered) == len(calls) and all(
        call.op in kernel.operations for kernel, call in zip(ordered, calls, strict=True)
    )
    yield from zip(ordered, calls if agree else [None] * len(ordered), strict=True)


# -- from a trace to kernels


class _Step(NamedTuple):
    """The annotation of a step; microseconds of the trace's clock."""

    start: float
    end: float
    name: str


class _Launch(NamedTuple):
    at: float
    step: _Step


def read_kernels(trace: Any) -> list[Kernel]:
    """The kernels of a Chrome trace (its JSON) that were launched inside a step, replayed graphs
    included.

    A kernel carries the correlation number of the call that launched it; that call lies inside a
    step's annotation. Raises KeyError where this is no Chrome trace.
    """
    origin = float(trace.get("baseTimeNanoseconds", 0)) / 1e3
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
    return sorted(
        _Step(event.start, event.start + event.duration, event.name)
        for event in events
        if event.category == "user_annotation" and event.name.startswith(STEP_PREFIX)
    )


def _kernel(event: TraceEvent, launch: _Launch, origin: float) -> Kernel:
    phase, index = launch.step.name.removeprefix(STEP_PREFIX).split("/")
    start = origin + event.start
    return Kernel(event.name, phase, int(index), launch.at, start, start + event.duration)


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
