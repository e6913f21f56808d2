"""Traces in the form in which Kineto writes those of a worker of vLLM on a GPU, with times that are
known: a pipeline of two stages, each over two tp ranks."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BASE_NS = 1_790_857_026_000_000_000
GEMM = "nvjet_tst_128x64_64x8_2x1_v_bz_TNN"
CUSTOM = (
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*, vllm::RankSignals, "
    "vllm::Signal*, __nv_bfloat16*, int, int)"
)
FUSED = (
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<"
    "(flashinfer::trtllm_allreduce_fusion::AllReduceFusionPattern)1, __nv_bfloat16, 2, true>"
)
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
ALL_GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
BROADCAST = "ncclDevKernel_Broadcast_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SENT = 2048  # elements of bfloat16 that go from a stage to the next one
PERIOD_US = 1000
PHASES = ("prefill", "prefill", "decode", "decode", "decode", "decode", "decode")

Ran = tuple[str, float, float]  # a kernel, its start and its end


@dataclass
class GpuTrace:
    """The trace of one worker. Times are microseconds on a clock that all of a node have; its own
    is `ahead_us` behind a base that is as much later."""

    ahead_us: int = 0
    told: bool = True  # whether it has the arguments of what process groups were called for
    events: list[dict[str, object]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def add(self, category: str, name: str, start: float, end: float, **args: object) -> None:
        at = {"ts": start - self.ahead_us, "dur": end - start}
        self.events.append({"ph": "X", "cat": category, "name": name, **at, "args": args})

    def step(self, phase: str, number: int, start: float, end: float, before: float = 9) -> None:
        """A step: our mark, in it vLLM's own range, which begins `before` microseconds later, and
        the copies of both on the GPU's track."""
        self.add("user_annotation", f"step/{phase}/{number}", start, end)
        self.add("user_annotation", "execute_context_0(0)_generation_4(4)", start + before, end - 1)
        self.add("gpu_user_annotation", f"step/{phase}/{number}", start + 300, end + 300)

    def empty_step(self, start: float, end: float) -> None:
        """A step without tokens, which has no mark."""
        self.add("user_annotation", "execute_context_0(0)_generation_0(0)", start, end)

    def launch(self, at: float, *ran: Ran, **args: object) -> None:
        """One launch and its kernels, several of a graph."""
        number = next(self._numbers)
        api = "cudaGraphLaunch" if len(ran) > 1 else "cudaLaunchKernelExC"
        self.add("cuda_runtime", api, at, at + 3, correlation=number)
        for name, start, end in ran:
            known = args if self.told else {}
            self.add("kernel", name, start, end, stream=7, correlation=number, **known)

    def call(self, at: float, op: str, ran: Ran, elements: int, dtype: str = "BFloat16") -> None:
        """A call of a process group of torch's."""
        sizes = {"In msg nelems": elements, "Out msg nelems": elements, "dtype": dtype}
        self.launch(at, ran, **{"Collective name": op, **sizes, "Group size": 2})

    def write(self, path: Path) -> Path:
        """The gzipped file. Every entry is of a few lines, as Kineto's are."""
        base = BASE_NS + 1000 * self.ahead_us
        meta = {"ph": "M", "name": "process_name", "args": {"name": "python"}}
        ended = {"ph": "i", "s": "g", "name": "Record Window End", "ts": 1e9}
        whole = {
            "schemaVersion": 1,
            "deviceProperties": [{"id": 0, "name": "NVIDIA H100", "numSms": 132}],
            "displayTimeUnit": "ms",
            "baseTimeNanoseconds": base,
            "traceEvents": [meta, *self.events, ended],
            "traceName": "/tmp/tmpfd5uzv_p.json",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump(whole, file, indent=2)
        return path


def first_stage(trace: GpuTrace, late_us: float) -> GpuTrace:
    """A rank of the first stage. late_us: by which it computes longer before its all-reduce."""
    for number, phase in enumerate(PHASES):
        t = number * PERIOD_US
        trace.step(phase, number, t, t + 50)
        _run(
            trace,
            phase,
            t + 10,
            (GEMM, t + 20, t + 200 + late_us),
            (CUSTOM, t + 200 + late_us, t + 230),
            (GEMM, t + 230, t + 300),
            (FUSED, t + 300, t + 340),
            (GEMM, t + 340, t + 390),
        )
        trace.call(t + 40, "send", (SEND_RECV, t + 390, t + 410), SENT)
        # The tokens from the last stage, asked for where a stage samples: after its step's mark.
        trace.call(t + 60, "broadcast", (BROADCAST, t + 410, t + 820), 4, "Long")
    trace.empty_step(t + PERIOD_US, t + PERIOD_US + 5)
    trace.launch(t + PERIOD_US + 2, (GEMM, t + PERIOD_US + 900, t + PERIOD_US + 901))
    return trace


def last_stage(trace: GpuTrace) -> GpuTrace:
    """A rank of the last stage."""
    for number, phase in enumerate(PHASES):
        t = number * PERIOD_US
        trace.step(phase, number, t + 5, t + 380, before=335)
        # Before vLLM's own range its host waits for the shapes of what it receives, their number
        # first, and then posts the receive.
        trace.add("user_annotation", "gloo:recv", t + 8, t + 250)
        trace.add("user_annotation", "gloo:recv", t + 252, t + 300)
        trace.call(t + 310, "recv", (SEND_RECV, t + 320, t + 410), SENT)
        _run(
            trace,
            phase,
            t + 345,
            (GEMM, t + 410, t + 600),
            (ALL_REDUCE, t + 600, t + 620),
            (GEMM, t + 620, t + 790),
        )
        trace.launch(t + 390, (ALL_GATHER, t + 790, t + 800))
        trace.launch(t + 392, ("_argmax_kernel", t + 800, t + 805))
        trace.call(t + 395, "broadcast", (BROADCAST, t + 805, t + 820), 4, "Long")
    return trace


def _run(trace: GpuTrace, phase: str, at: float, *ran: Ran) -> None:
    """A forward pass: of decode a replayed graph, of prefill launch by launch."""
    if phase == "decode":
        trace.launch(at, *ran)
    else:
        for i, one in enumerate(ran):
            trace.launch(at + i, one)
