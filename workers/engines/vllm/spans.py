"""From a trace of one of vLLM's workers to spans.

A step lasts from its mark to the next one: it then has the sampling of its tokens, which vLLM
launches after its own range `execute_context_...` has ended, and the receive of a pipeline stage,
which it posts before. On a GPU the host first waits for the shapes of what the stage is to receive,
and launches the kernels that receive it only then: that wait is a stall.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from strategies.placement import Placement
from workers.backends import NCCL_KERNELS, CommunicationKernel
from workers.intervals import subtract, union
from workers.probes import trace
from workers.probes.kernels import Registry
from workers.probes.spans import StepOf, span_row
from workers.probes.trace import ANNOTATION, Kernel, TraceEvent, TraceStep
from workers.probes.trace_files import TraceFile
from workers.records import COMPUTE, SPANS, STALL, Call, SpanRow
from workers.rows import grouped

OPERATOR = "cpu_op"
WANTED = {"cuda": trace.WANTED, "cpu": frozenset({OPERATOR, ANNOTATION})}
RANGE = "execute_context_"  # vLLM's own annotation of a step, with those that have no tokens
# On a CPU operators communicate. What is around them, as vllm::all_reduce, does not itself.
ON_THE_HOST = Registry(
    (
        CommunicationKernel(r"^_C::shm_allreduce", ("all_reduce",)),
        CommunicationKernel(r"^_C::shm_all_gather", ("all_gather",)),
        CommunicationKernel(r"^_C::shm_send", ("send",)),
        CommunicationKernel(r"^_C::shm_recv", ("recv",)),
        CommunicationKernel(r"^gloo:all_?reduce", ("all_reduce",)),
        CommunicationKernel(r"^gloo:_?all_?gather", ("all_gather",)),
        CommunicationKernel(r"^gloo:broadcast", ("broadcast",)),
        CommunicationKernel(r"^gloo:send", ("send",)),
        CommunicationKernel(r"^gloo:recv", ("recv",)),
    )
)
ON_A_GPU = Registry.beside(NCCL_KERNELS)
SHAPES = "gloo:recv"  # on a GPU: the host waits for the shapes of what is to be received
BETWEEN_STAGES = frozenset({"send", "recv", "broadcast"})


def spans_of(rank: int, found: TraceFile, placement: Placement, device: str) -> pa.Table:
    """Table SPANS of one rank, in order of start. Raises ValueError where no step is marked."""
    steps = reaching(found.events)
    if not steps:
        raise ValueError("no step is marked in it")
    if device == "cpu":
        kernels, registry = _operators(found.events, steps, found.origin), ON_THE_HOST
    else:
        kernels, registry = trace.kernels_of(found.events, steps, found.origin), ON_A_GPU
    by_step = grouped(kernels, lambda one: StepOf(rank, one.phase, one.step))
    computed = host_compute if device == "cpu" else trace.compute_spans
    stalls = _stalls(rank, found, steps) if device != "cpu" else ()
    rows = [
        row
        for of, mine in by_step.items()
        for row in (*computed(of, mine, registry), *_communication(of, mine, registry, placement))
    ]
    return SPANS.make(sorted([*rows, *stalls], key=trace.start_of))


def reaching(events: Sequence[TraceEvent]) -> list[TraceStep]:
    """The marked steps, in order, each until the next one begins, be it one without tokens, which
    vLLM alone annotates."""
    steps = trace.steps_of(events)
    ranges = (one.start for one in events if one.name.startswith(RANGE))
    starts = sorted([*ranges, *(step.start for step in steps), math.inf])
    return [step._replace(end=starts[bisect.bisect_left(starts, step.end)]) for step in steps]


def _operators(
    events: Iterable[TraceEvent], steps: Sequence[TraceStep], origin: float
) -> list[Kernel]:
    """On a CPU: the operators of each step, one around another, as they ran."""
    found = []
    for one, of in _within(events, steps):
        if one.category == OPERATOR or ON_THE_HOST.of(one.name).operations:
            start, end = origin + one.start, origin + one.end
            found.append(Kernel(one.name, of.phase, of.number, one.start, start, end))
    return found


def _stalls(rank: int, found: TraceFile, steps: Sequence[TraceStep]) -> Iterator[SpanRow]:
    """On a GPU: the host of a stage waits for what the stage before it tells."""
    for one, of in _within(found.events, steps):
        if one.name == SHAPES:
            span = found.origin + one.start, found.origin + one.end
            yield span_row(StepOf(rank, of.phase, of.number), STALL, span)


def _within(
    events: Iterable[TraceEvent], steps: Sequence[TraceStep]
) -> Iterator[tuple[TraceEvent, TraceStep]]:
    """The events that begin in a step, with it."""
    starts = [step.start for step in steps]
    for one in events:
        i = bisect.bisect_right(starts, one.start) - 1
        if i >= 0 and one.start < steps[i].end:
            yield one, steps[i]


def host_compute(of: StepOf, operators: Sequence[Kernel], registry: Registry) -> Iterator[SpanRow]:
    """On a CPU: an operator runs, and none that communicates. What is between operators, as
    Python, is not compute."""
    calls = (one for one in operators if registry.of(one.name).operations)
    communicating = union((one.start, one.end) for one in calls)
    running = union((one.start, one.end) for one in operators)
    for span in subtract(running, communicating):
        yield span_row(of, COMPUTE, span)


def _communication(
    of: StepOf, kernels: Iterable[Kernel], registry: Registry, placement: Placement
) -> Iterator[SpanRow]:
    """Each communicating kernel as a call of its step; without an axis where it is not known what
    it carries out."""
    for one in kernels:
        known = registry.of(one.name)
        if known.operations:
            op = operation(one, known, of.rank, placement)
            axis = axis_of(op, placement)
            size = one.told.bytes if one.told else None
            call = Call(op, axis, size, of.phase) if axis else None
            yield span_row(of, op, (one.start, one.end), call, fused=known.fused)


def operation(kernel: Kernel, known: CommunicationKernel, rank: int, placement: Placement) -> str:
    """What a communicating kernel carries out. One and the same of NCCL's sends or receives: where
    the trace does not tell which, the first stage of a pipeline sends and the last receives."""
    if kernel.told and kernel.told.name in known.operations:
        return kernel.told.name
    if set(known.operations) != {"send", "recv"}:
        return known.operations[-1]
    stages = placement.group("pp", rank) if placement.degree("pp") > 1 else ()
    ends = {stages[0]: "send", stages[-1]: "recv"} if stages else {}
    return ends.get(rank, "other")


def axis_of(op: str, placement: Placement) -> str | None:
    """The mesh axis of an operation of vLLM: hand-overs and the broadcast of tokens are between
    stages, all else is within one. None where that is not known."""
    if op in BETWEEN_STAGES and placement.degree("pp") > 1:
        return "pp"
    return "tp" if op != "other" and placement.degree("tp") > 1 else None
