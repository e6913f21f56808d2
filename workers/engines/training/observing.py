"""Optimizer steps under torch's profiler (Kineto): when what computes, and when what communicates.

On a GPU these are kernels. A profiler of the host slows one that launches operator by operator, and
with it the GPU: where names of kernels tell what is called over which axis, the GPU alone is
profiled, and the host marks its ranges by itself. On a CPU gloo's calls are seen from issue to end,
and the host computes while it waits for none of them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from strategies.placement import Placement
from workers.engines.training.counting import (
    ALONE,
    NUMBERS,
    OPERATIONS,
    Issued,
    axes_by_operation,
    axes_by_ranks,
)
from workers.engines.training.observed import HANDOVERS, SeenCall, SeenStep
from workers.intervals import Span, intersect, subtract, union
from workers.probes import trace
from workers.probes.kernels import Registry
from workers.probes.marks import Marks
from workers.probes.trace import ANNOTATION, LAUNCHES, ON_THE_GPU, Told, TraceEvent, TraceStep
from workers.probes.trace_files import TraceFile, exported

STEP_PHASE = "train"
OPERATOR = "cpu_op"
WANTED = frozenset({*LAUNCHES, *ON_THE_GPU, ANNOTATION, OPERATOR})
# Torch's range around a node of the backward pass, and ours around all, where no node is seen.
NODE, BACKWARD = "autograd::engine::evaluate_function", "part/backward"
WAIT = "part/wait"
# Operators that compute, and the range of torch.compile around those that it has made one.
COMPUTES = ("aten::", "Torch-Compiled Region")
COMMUNICATES = ("c10d::", "_c10d_functional::")
WAIT_OPERATOR = "_c10d_functional::wait_tensor"
TO_OR_FROM_HOST = ("Memcpy HtoD", "Memcpy DtoH")
# Steps under the profiler: one pays for its start and is not kept, then those that are. A step of a
# large model has hundreds of thousands of events, which are slow to read.
STARTING = 1
KEPT = {"cuda": 1, "cpu": 2}
MARKS = Marks()


def part(name: str) -> AbstractContextManager[object]:
    """A range of a step, by which a profile tells what it is for."""
    return MARKS.range(f"part/{name}")


class Watch:
    """Profiles the steps of one rank, STARTING and then `kept`. journal: the calls of one step, in
    order."""

    def __init__(
        self, placement: Placement, rank: int, device: torch.device, journal: Sequence[Issued]
    ) -> None:
        self._placement, self._rank, self._device = placement, rank, device
        self._journal = journal
        on_gpu = device.type == "cuda"
        axes = axes_by_operation(journal).values()
        self._is_host_seen = not on_gpu or any(len(over) > 1 for over in axes)
        activities = [torch.profiler.ProfilerActivity.CPU] if self._is_host_seen else []
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.kept = KEPT[device.type]
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=STARTING, active=self.kept, repeat=1),
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Profile what runs inside."""
        MARKS.forget()
        with nullcontext() if self._device.type == "cuda" else _waits_marked(), self._profiler:
            yield

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step, until its device is done."""
        kept = nullcontext() if self._is_host_seen or number < STARTING else MARKS.kept()
        with kept, MARKS.range(trace.step_name(STEP_PHASE, number)):
            yield
        self._profiler.step()

    def steps(self, deadline: float) -> list[SeenStep]:
        """The steps that are kept. deadline: of `time.monotonic`, for reading them. Raises
        TimeoutError."""
        found, device = exported(self._profiler, WANTED, deadline), self._device.type
        found.events.extend(MARKS.events(found.origin))
        return steps_seen(found, self._placement, self._rank, device, self._journal)


def steps_seen(
    found: TraceFile, placement: Placement, rank: int, device: str, journal: Sequence[Issued]
) -> list[SeenStep]:
    """What a trace tells of each step. device: "cuda" or "cpu"."""
    if device == "cuda":
        return _on_gpu(found.events, placement, rank, journal)
    return [_on_cpu(mine, step, journal) for step, mine in _by_step(found.events)]


# -- on a GPU


def _on_gpu(
    events: Sequence[TraceEvent], placement: Placement, rank: int, journal: Sequence[Issued]
) -> list[SeenStep]:
    """Kernels, by what launched them; steps of which none was seen are left out."""
    registry, issued = Registry.beside(()), axes_by_operation(journal)
    axes = {(rank,): ALONE, **axes_by_ranks(placement, rank)}
    launched_by = {one.correlation: one.start for one in events if one.category in LAUNCHES}
    steps = []
    for step, mine in _by_step(events):
        ranges = _Ranges(mine)
        computing: dict[str, list[Span]] = {}
        calls: list[SeenCall] = []
        moved: list[Span] = []
        for kernel in events:
            at = launched_by.get(kernel.correlation, -1.0)
            if kernel.category not in ON_THE_GPU or not step.start <= at <= step.end:
                continue
            when, where = (kernel.start, kernel.end), ranges.part_at(at)
            if kernel.name.startswith(TO_OR_FROM_HOST):
                moved.append(when)
            is_copy = kernel.name.startswith("Memcpy")
            able = () if is_copy else registry.of(kernel.name).operations
            call = _call(kernel.told, able, when, axes, issued, where == "agree") if able else None
            if call is not None and call.axis != ALONE:
                calls.append(call)
            else:
                computing.setdefault("other" if where == "agree" else where, []).append(when)
        spans = {name: union(found) for name, found in computing.items()}
        if spans or calls:
            steps.append(SeenStep((step.start, step.end), spans, calls, moved))
    return steps


def _call(
    told: Told | None,
    able: tuple[str, ...],
    when: Span,
    axes: Mapping[tuple[int, ...], str],
    issued: Mapping[str, Set[str | None]],
    agrees: bool,
) -> SeenCall:
    """The call of a kernel. able: what a kernel of its name may carry out; of sends and receives
    one kernel may be several. issued: what each operation of a step is over, by which a kernel that
    nothing is told of is known."""
    if set(able) == {"send", "recv"}:
        return SeenCall("send_recv", "pp", [when], agrees)
    if told is None:
        over = issued.get(able[0], set())
        return SeenCall(able[0], _only(over), [when], agrees or over == {None})
    op = OPERATIONS.get(told.name, OPERATIONS.get(f"{told.name}_")) or able[0]
    axis = _only(issued.get(op, set()))
    if told.ranks:
        axis = axes.get(tuple(sorted(told.ranks)), "world")
    is_number = told.bytes is not None and told.bytes <= NUMBERS
    return SeenCall(op, axis, [when], agrees or is_number)


def _only(over: Set[str | None]) -> str | None:
    axes = over - {None}
    return next(iter(axes)) if len(axes) == 1 else None


# -- on a CPU


def _on_cpu(events: Sequence[TraceEvent], step: TraceStep, journal: Sequence[Issued]) -> SeenStep:
    """Gloo's calls, and the host while it waits for none of them."""
    window, ranges = (step.start, step.end), _Ranges(events)
    waits = _spans(events, lambda one: one.name in (WAIT, WAIT_OPERATOR))
    issued = _issued(events, ranges, journal)
    blocked = union([*waits, *_unwaited(events, issued, waits)])
    calls = [
        SeenCall(call.op, call.axis, intersect(call.spans, blocked), call.agrees, ends=False)
        if call.op in HANDOVERS
        else call
        for call in issued
    ]
    computing = {name: subtract(spans, blocked) for name, spans in ranges.within(window).items()}
    return SeenStep(window, computing, calls)


def _issued(
    events: Sequence[TraceEvent], ranges: _Ranges, journal: Sequence[Issued]
) -> list[SeenCall]:
    """Each call, from its issue to the end of gloo's event, which begins where a thread of gloo
    takes it up: in the order of issue. That is the order of the journal, too; where it is not,
    nobody knows the groups."""
    operators = sorted(
        (one for one in events if one.name.startswith("c10d::") and _operation(one)),
        key=lambda one: one.start,
    )
    gloo = sorted((one.start, one.end) for one in events if one.name.startswith("gloo:"))
    mine = [one for one in operators if ranges.part_at(one.start) != "agree"]
    is_known = [one.op for one in journal] == [_operation(one) for one in mine]
    places = iter(journal)
    calls = []
    ends = [end for _, end in gloo] if len(gloo) == len(operators) else [None] * len(operators)
    for one, end in zip(operators, ends, strict=True):
        spans = [] if end is None else [(one.start, end)]
        agrees = ranges.part_at(one.start) == "agree"
        axis = None
        if not agrees and is_known:
            axis = next(places).axis
            agrees = axis is None
        calls.append(SeenCall(str(_operation(one)), axis, spans, agrees))
    return [call for call in calls if call.axis != ALONE]


def _operation(one: TraceEvent) -> str | None:
    return OPERATIONS.get(one.name.removeprefix("c10d::"))


def _unwaited(
    events: Sequence[TraceEvent], calls: Sequence[SeenCall], waits: Sequence[Span]
) -> list[Span]:
    """When the host is held up by calls that no wait of Python's or of an operator's is for: DDP
    waits for its own in C++, at the end of the backward pass. There the host is held up while it
    runs no operator and no node of the graph."""
    mine = union(
        span
        for call in calls
        if call.op not in HANDOVERS
        for span in call.spans
        if not intersect([span], waits)
    )
    running = _spans(events, lambda one: one.name.startswith((*COMPUTES, *COMMUNICATES, NODE)))
    return subtract(mine, running)


# -- the ranges of a step


class _Ranges:
    """Which part of a step something belongs to, by the moment at which the host did it."""

    def __init__(self, events: Sequence[TraceEvent]) -> None:
        self._spans = {
            "agree": _spans(events, lambda one: one.name == "part/agree"),
            "backward": _spans(events, lambda one: one.name.startswith(NODE))
            or _spans(events, lambda one: one.name == BACKWARD),
            "forward": _spans(events, lambda one: one.name == "part/forward"),
            "optimizer": _spans(events, lambda one: one.name == "part/optimizer"),
        }

    def part_at(self, moment: float) -> str:
        """The part, "agree" or "other"."""
        return next((name for name, spans in self._spans.items() if _holds(spans, moment)), "other")

    def within(self, window: Span) -> dict[str, list[Span]]:
        """Each part of a step that computes, all others being "other"."""
        left, parts = [window], {}
        for name in ("backward", "forward", "optimizer"):
            rest = subtract(left, self._spans[name])
            parts[name] = subtract(left, rest)
            left = rest
        return parts | {"other": left}


def _holds(spans: Sequence[Span], moment: float) -> bool:
    at = bisect.bisect_right(spans, (moment, math.inf)) - 1
    return at >= 0 and moment <= spans[at][1]


def _spans(events: Sequence[TraceEvent], wanted: Callable[[TraceEvent], bool]) -> list[Span]:
    return union((one.start, one.end) for one in events if wanted(one))


def _by_step(events: Sequence[TraceEvent]) -> Iterator[tuple[TraceStep, list[TraceEvent]]]:
    """Each step with what the host did in it."""
    for step in trace.steps_of(events):
        inside = partial(_is_in, step)
        yield step, [one for one in events if one.category not in ON_THE_GPU and inside(one)]


def _is_in(step: TraceStep, one: TraceEvent) -> bool:
    return step.start <= one.start <= step.end


# -- torch


@contextmanager
def _waits_marked() -> Iterator[None]:
    """Mark where Python waits for a call: gloo says when one ends, and nobody when it is waited
    for."""
    kind: Any = dist.Work
    wait = kind.wait

    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(WAIT):
            return wait(self, *args, **kwargs)

    kind.wait = marked
    try:
        yield
    finally:
        kind.wait = wait
