"""A run seen by torch's profiler (Kineto): which kernel ran when, in which step, and what it
communicated."""

from __future__ import annotations

import bisect
import json
import math
import re
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
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
ANNOTATION = "user_annotation"
ELSEWHERE = ("nccl", "Mem")  # begins of names of what may run beside an engine's own kernels
WANTED = LAUNCHES | ON_THE_GPU | {ANNOTATION}
# Names of element types in a trace.
ELEMENT_BYTES = {
    **dict.fromkeys(("Bool", "Byte", "Char", "Float8_e4m3fn", "Float8_e5m2"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long"), 8),
}


class Told(NamedTuple):
    """What a trace tells of a call of a process group: its name there, as "allreduce" or "send",
    and the bytes of its message as nccl-tests counts them, None where its type is not known. ranks:
    of the group, None where they are not told, or not all of them."""

    name: str
    bytes: int | None
    ranks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """A complete event ("ph": "X") of a Chrome trace.

    start: microseconds of the trace's own clock; duration: microseconds. correlation: the number
    that a launch and what it launched have in common. told: of an operation of a process group, or
    of its kernel, what the profiler says of it.
    """

    name: str
    category: str
    start: float
    duration: float
    correlation: int | None
    told: Told | None = None

    @property
    def end(self) -> float:
        """When it ended, in microseconds of the trace's own clock."""
        return self.start + self.duration


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel, copy or fill that ran on the GPU within a step.

    launched: when its launch was called, on the trace's clock; one graph's kernels have the same.
    start, end: on the clock of the node. All in microseconds. told: what the trace says of the call
    that it carried out, where it is one of a process group and was not replayed in a graph.
    """

    name: str
    phase: str
    step: int
    launched: float
    start: float
    end: float
    told: Told | None = None


class Tracer:
    """A probe that runs the profiler around the whole run."""

    def __init__(self, communicator: Communicator) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities)
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
        with written(self._profiler) as path:
            trace = json.loads(path.read_text(encoding="utf-8"))
        self._kernels = in_turn(read_kernels(trace))

    @contextmanager
    def step(self, phase: str, index: int) -> Iterator[None]:
        """Mark a step in the trace, and keep the calls of the Communicator in it."""
        of = StepOf(self._communicator.context.rank, phase, index)
        self._communicator.journal = self._calls[of] = []
        with torch.profiler.record_function(step_name(phase, index)):
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
            *compute_spans(of, found, registry),
            *_communication_spans(of, found, calls.get(of, ()), registry),
        )
    ]
    return SPANS.make(sorted(rows, key=start_of))


def start_of(row: SpanRow) -> float:
    """When a span began; those that were not seen come last."""
    return math.inf if row.start_us is None else row.start_us


def compute_spans(of: StepOf, kernels: Iterable[Kernel], registry: Registry) -> Iterator[SpanRow]:
    """What kernels of a step compute, merged where they touch or overlap."""
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


def in_turn(kernels: Iterable[Kernel]) -> list[Kernel]:
    """The kernels of one rank of an engine that computes in one stream, in order of start.

    A kernel that was launched before the one before it had ended (programmatic dependent launch)
    has waited for that one, so it counts from then on. NCCL and copies may have streams of their
    own: they are left as they are.
    """
    found, free = [], -math.inf
    for kernel in sorted(kernels, key=lambda one: one.start):
        if not kernel.name.startswith(ELSEWHERE):
            kernel = replace(kernel, start=min(max(kernel.start, free), kernel.end))
            free = max(free, kernel.end)
        found.append(kernel)
    return found


class TraceStep(NamedTuple):
    """When the host was in a step, by its annotation; microseconds of the trace's clock."""

    start: float
    end: float
    phase: str
    number: int


class _Launch(NamedTuple):
    at: float
    step: TraceStep


def read_kernels(trace: Any) -> list[Kernel]:
    """The kernels of a Chrome trace (its JSON) that were launched inside a step, replayed graphs
    included. Raises KeyError where this is no Chrome trace."""
    events = [one for entry in trace["traceEvents"] if (one := event_of(entry)) is not None]
    return kernels_of(events, steps_of(events), origin_us(trace.get("baseTimeNanoseconds", 0)))


def step_name(phase: str, number: int) -> str:
    """The name of the annotation around a step."""
    return f"step/{phase}/{number}"


def origin_us(base_ns: int) -> float:
    """What is added to times of a trace so that all ranks of a node have one clock: its base,
    within the year, as a float has no room for nanoseconds since 1970."""
    return (int(base_ns) % YEAR_NS) / 1e3


def event_of(entry: Any, wanted: Container[str] = WANTED) -> TraceEvent | None:
    """The event of an entry of a Chrome trace, where it is a complete one of a category wanted."""
    if entry.get("ph") != "X" or entry.get("cat") not in wanted:
        return None
    args = entry.get("args", {})
    told = _told(args) if "Collective name" in args else None
    return TraceEvent(
        entry["name"], entry["cat"], entry["ts"], entry["dur"], args.get("correlation"), told
    )


def _told(args: Mapping[str, Any]) -> Told:
    """From what Kineto keeps of a call (`record_param_comms`)."""
    name, size = str(args["Collective name"]), ELEMENT_BYTES.get(str(args.get("dtype")))
    number = args.get("Out msg nelems" if "gather" in name or name == "recv" else "In msg nelems")
    told = re.fullmatch(r"\[(\d+(?:, \d+)*)\]", str(args.get("Process Group Ranks")))
    ranks = tuple(map(int, told[1].split(", "))) if told else None
    return Told(name, None if size is None or number is None else size * int(number), ranks)


def kernels_of(
    events: Sequence[TraceEvent], steps: Sequence[TraceStep], origin: float
) -> list[Kernel]:
    """The kernels among `events` that were launched inside one of `steps`, which are in order.

    A kernel carries the correlation number of the call that launched it; that call lies inside a
    step. origin: of `origin_us`.
    """
    launches = _launches(events, steps)
    return [
        _kernel(event, launches[event.correlation], origin)
        for event in events
        if event.category in ON_THE_GPU and event.correlation in launches
    ]


def _launches(
    events: Iterable[TraceEvent], steps: Sequence[TraceStep]
) -> dict[int | None, _Launch]:
    """Correlation number -> the launch that has it, of those inside a step."""
    starts = [step.start for step in steps]
    launches: dict[int | None, _Launch] = {}
    for event in events:
        if event.category in LAUNCHES and event.correlation is not None:
            i = bisect.bisect_right(starts, event.start) - 1
            if i >= 0 and event.start <= steps[i].end:
                launches[event.correlation] = _Launch(event.start, steps[i])
    return launches


def steps_of(events: Iterable[TraceEvent]) -> list[TraceStep]:
    """The annotated steps among `events`, in order."""
    annotations = (event for event in events if event.category == ANNOTATION)
    return sorted(
        TraceStep(event.start, event.end, named[1], int(named[2]))
        for event in annotations
        if (named := STEP.fullmatch(event.name))
    )


def _kernel(event: TraceEvent, launch: _Launch, origin: float) -> Kernel:
    start, step = origin + event.start, launch.step
    end = start + event.duration
    return Kernel(event.name, step.phase, step.number, launch.at, start, end, event.told)


@contextmanager
def written(profiler: torch.profiler.profile) -> Iterator[Path]:
    """The Chrome trace of what a profiler saw, as a file that is gone afterwards: it has no other
    way out that is public."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        yield path
