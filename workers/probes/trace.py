"""A run seen by torch's profiler (Kineto): which kernel ran when, in which step, and what it
communicated."""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from workers.communicator import Communicator
from workers.intervals import union
from workers.records import COMPUTE, SPANS, Call, to_table

# The registry of kernels that communicate: a part of the kernel's name -> the operations it may
# carry out. The first fits. NCCL's begin with ncclDevKernel_ or, on symmetric memory,
# ncclSymkDevKernel_; its Generic ones do what they are told.
COMMUNICATION_KERNELS = {
    "DevKernel_AllReduce": ("all_reduce",),
    "DevKernel_AllGather": ("all_gather",),
    "DevKernel_ReduceScatter": ("reduce_scatter",),
    "DevKernel_Broadcast": ("broadcast",),
    "DevKernel_SendRecv": ("send", "recv"),
    "one_shot_all_reduce": ("all_reduce",),
    "two_shot_all_reduce": ("all_reduce",),
    "nccl": ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "recv", "other"),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: its name, the step it belongs to, when it was launched, start and end;
    microseconds."""

    name: str
    phase: str
    step: int
    launched: float
    start: float
    end: float

    @property
    def operations(self) -> tuple[str, ...]:
        """What it may communicate; () for compute."""
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
        with self._profiler:
            yield
            torch.cuda.synchronize()
        self._communicator.journal = None
        self._kernels = read_kernels(_export(self._profiler))

    @contextmanager
    def step(self, phase: str, index: int) -> Iterator[None]:
        self._communicator.journal = self._calls[index] = []
        with torch.profiler.record_function(f"step/{phase}/{index}"):
            yield
        self._communicator.journal = None

    def spans(self) -> pa.Table:
        return kernel_spans(self._communicator.context.rank, self._kernels, self._calls)


def kernel_spans(rank: int, kernels: Sequence[Kernel], calls: dict[int, list[Call]]) -> pa.Table:
    """SPANS from kernels and, by step, the calls of the Communicator in the order they were made.

    Compute is merged where kernels touch or overlap.
    """
    compute: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    talking: dict[int, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        if kernel.operations:
            talking[kernel.step].append(kernel)
        else:
            compute[kernel.phase, kernel.step].append((kernel.start, kernel.end))
    rows: list[dict[str, Any]] = []
    for (phase, step), spans in compute.items():
        rows += [_row(rank, phase, step, COMPUTE, start, end) for start, end in union(spans)]
    for step, found in talking.items():
        for kernel, call in zip(found, _matched(found, calls.get(step, [])), strict=True):
            known = (
                {"axis": call.axis, "call_phase": call.phase, "bytes": call.bytes} if call else {}
            )
            op = call.op if call else kernel.operations[-1]
            rows.append(_row(rank, kernel.phase, step, op, kernel.start, kernel.end, **known))
    return to_table(sorted(rows, key=lambda row: row["start_us"]), SPANS)


def _matched(kernels: list[Kernel], calls: list[Call]) -> list[Call | None]:
    """The call of each kernel: kernels in the order they were launched (inside one graph: ran) are
    the calls in order.

    None for each where the two do not fit: then a kernel's name alone says what it does.
    """
    kernels.sort(key=lambda k: (k.launched, k.start))
    fits = len(kernels) == len(calls) and all(
        call.op in k.operations for k, call in zip(kernels, calls, strict=True)
    )
    return [*calls] if fits else [None] * len(kernels)


def _row(
    rank: int, phase: str, step: int, kind: str, start: float, end: float, **call: Any
) -> dict[str, Any]:
    return {
        "rank": rank,
        "phase": phase,
        "step": step,
        "kind": kind,
        "start_us": start,
        "end_us": end,
        **call,
    }


def read_kernels(trace: dict[str, Any]) -> list[Kernel]:
    """The kernels of a Chrome trace that were launched inside a step, replayed graphs included.

    A kernel carries the correlation number of the call that launched it; that call lies inside a
    step's annotation.
    """
    origin = float(trace.get("baseTimeNanoseconds", 0)) / 1e3
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    annotations = [
        e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("step/")
    ]
    steps = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in annotations)
    starts = [step[0] for step in steps]
    launches: dict[int, tuple[float, str]] = {}
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get(
            "args", {}
        ):
            i = bisect.bisect_right(starts, event["ts"]) - 1
            if i >= 0 and event["ts"] <= steps[i][1]:
                launches[event["args"]["correlation"]] = (event["ts"], steps[i][2])
    kernels = []
    for event in events:
        launch = launches.get(event.get("args", {}).get("correlation"))
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and launch is not None:
            _, phase, index = launch[1].split("/")
            start = origin + event["ts"]
            kernels.append(
                Kernel(event["name"], phase, int(index), launch[0], start, start + event["dur"])
            )
    return kernels


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
