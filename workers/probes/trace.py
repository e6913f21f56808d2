"""A run seen by the profiler: which kernel ran when, in which step, and whether it computed or communicated."""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from workers.plan import Overhead

# Kernels that communicate, by a part of their names. Collectives of a group, and hand-over between pipeline stages.
COLLECTIVE_KERNELS = ("ncclDevKernel_AllReduce", "ncclDevKernel_AllGather", "ncclDevKernel_ReduceScatter", "one_shot", "two_shot")
HANDOVER_KERNELS = ("ncclDevKernel_SendRecv", "ncclDevKernel_Broadcast")

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: its name, the step it belongs to, start and end in microseconds."""

    name: str
    phase: str
    step: int
    start: float
    end: float

    def is_any(self, names: Sequence[str]) -> bool:
        return any(name in self.name for name in names)


class Tracer:
    """A probe that runs torch's profiler (Kineto) around the whole run."""

    def __init__(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)
        self._kernels: list[Kernel] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self._profiler:
            yield
            torch.cuda.synchronize()
        self._kernels = read_kernels(_export(self._profiler))

    def step(self, phase: str, index: int) -> AbstractContextManager[None]:
        return torch.profiler.record_function(f"step/{phase}/{index}")

    def overheads(self) -> Sequence[Overhead]:
        phases = sorted({kernel.phase for kernel in self._kernels})
        found = [take_apart(phase, [k for k in self._kernels if k.phase == phase]) for phase in phases]
        return [overhead for overhead in found if overhead is not None]


def read_kernels(trace: dict[str, Any]) -> list[Kernel]:
    """The kernels of a Chrome trace that were launched inside a step, replayed graphs included.

    A kernel carries the correlation number of the call that launched it; that call lies inside a step's annotation.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    annotations = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("step/")]
    steps = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in annotations)
    starts = [step[0] for step in steps]
    launched: dict[int, str] = {}
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {}):
            i = bisect.bisect_right(starts, event["ts"]) - 1
            if i >= 0 and event["ts"] <= steps[i][1]:
                launched[event["args"]["correlation"]] = steps[i][2]
    kernels = []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and event["args"].get("correlation") in launched:
            _, phase, index = launched[event["args"]["correlation"]].split("/")
            kernels.append(Kernel(event["name"], phase, int(index), event["ts"], event["ts"] + event["dur"]))
    return sorted(kernels, key=lambda k: k.start)


def take_apart(phase: str, kernels: Sequence[Kernel]) -> Overhead | None:
    """The mean step of a phase. The first step is left out where there are more: it waits for ranks that began later.

    busy: collectives and hand-over, without the waiting in hand-over. exposed: the part of it when no other kernel ran.
    bubble: waiting in hand-over when no other kernel ran; what a hand-over kernel takes beyond the shortest of its kind is
    waiting for the other stage.
    """
    order = sorted({kernel.step for kernel in kernels})
    if not order:
        return None
    first_end = max(k.end for k in kernels if k.step == order[0])
    kept = [k for k in kernels if len(order) == 1 or k.step != order[0]]
    start = first_end if len(order) > 1 else min(k.start for k in kept)
    end = max(k.end for k in kept)
    collectives = [(k.start, k.end) for k in kept if k.is_any(COLLECTIVE_KERNELS)]
    handover = [k for k in kept if k.is_any(HANDOVER_KERNELS)]
    compute = [(k.start, k.end) for k in kept if not k.is_any(COLLECTIVE_KERNELS + HANDOVER_KERNELS)]
    moving, waiting = _split_handover(handover)
    others = union(compute + collectives)
    steps = max(len(order) - 1, 1)

    def per_step(value: float) -> float:
        return value / 1e3 / steps

    communicating = union(collectives + moving)
    return Overhead(
        phase=phase,
        steps=steps,
        step_ms=per_step(end - start),
        busy_ms=per_step(length(clip(communicating, start, end))),
        exposed_ms=per_step(length(clip(subtract(communicating, union(compute)), start, end))),
        bubble_ms=per_step(length(clip(subtract(subtract(union(waiting), others), union(moving)), start, end))),
    )


def _split_handover(kernels: Sequence[Kernel]) -> tuple[list[Span], list[Span]]:
    """(moving, waiting) spans: data moves at the end of a kernel, for as long as the shortest one of its name took."""
    shortest: dict[str, float] = {}
    for k in kernels:
        shortest[k.name] = min(shortest.get(k.name, k.end - k.start), k.end - k.start)
    moving = [(k.end - shortest[k.name], k.end) for k in kernels]
    waiting = [(k.start, k.end - shortest[k.name]) for k in kernels]
    return moving, waiting


def union(spans: Sequence[Span]) -> list[Span]:
    """The same time without overlaps, in order."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        elif end > start:
            out.append((start, end))
    return out


def subtract(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """What is left of `spans` outside `holes`; both without overlaps and in order."""
    out = []
    first = 0
    for start, end in spans:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        at = first
        while at < len(holes) and holes[at][0] < end:
            if holes[at][0] > start:
                out.append((start, holes[at][0]))
            start = max(start, holes[at][1])
            at += 1
        if start < end:
            out.append((start, end))
    return out


def clip(spans: Sequence[Span], start: float, end: float) -> list[Span]:
    return [(max(a, start), min(b, end)) for a, b in spans if b > start and a < end]


def length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)


def _export(profiler: torch.profiler.profile) -> dict[str, Any]:
    handle, path = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        profiler.export_chrome_trace(path)
        with open(path) as file:
            trace: dict[str, Any] = json.load(file)
            return trace
    finally:
        os.unlink(path)
