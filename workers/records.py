"""The rows of what a rank reports. Every table of a run is made of these, whatever the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.intervals import Span
from workers.rows import Table, column, columns, row

COMPUTE = "compute"  # the kind of a span without communication
STALL = "stall"  # of one in which the host waits for another stage before it launches a receive
PREFILL, DECODE = "prefill", "decode"  # the phases
PROFILE_LIMIT = 1.05  # a profiled step may take this much of a timed one, and its shares be shown
# After its last step a stage receives the tokens of the steps before: a step of spans alone.
DRAIN = "drain"


@row
class RequestRow:
    """One request. Times are seconds since the start of the run on the reporting rank's clock."""

    request_index: int = column("number of the request in the work, from 0", "1")
    replica: int = column("data-parallel replica that served it", "1")
    input_len: int = column("tokens of its prompt", "tokens")
    cached_tokens: int | None = column(
        "of these, found in a prefix cache and not read; 0 in an engine without one", "tokens"
    )
    output_len: int = column("tokens that were made", "tokens")
    arrival_s: float = column(
        "when it arrived: in an open loop as scheduled, in a closed one when the request before it "
        "in its seat had ended; a turn of a conversation not before the reply before it had ended",
        "s",
    )
    admitted_s: float | None = column("open loop only: when the scheduler let it in", "s")
    token_times_s: Sequence[float] = column("when each token was on the host", "s")
    output_token_ids: Sequence[int] | None = column("the tokens; kept for a detailed run", "1")


@row
class StepRow:
    """One engine step of a rank: one micro-batch through its stage."""

    rank: int = column("rank of the placement", "1")
    step: int = column("number of the step in the run, from 0", "1")
    phase: str = column("prefill or decode")
    micro_batch: int = column("which of the micro-batches in flight", "1")
    num_requests: int = column("requests in the step", "requests")
    num_tokens: int = column("tokens that went through the stage", "tokens")
    end_s: float = column("when it ended, since the start of the run", "s")


@row
class CollectiveRow:
    """The calls of one operation over one mesh axis in one phase, of one rank."""

    rank: int = column("rank of the placement", "1")
    phase: str = column("phase of the tokens that the calls carried")
    op: str = column("operation, as all_reduce")
    axis: str = column("mesh axis of its group")
    calls: int = column("calls", "1")
    bytes: int | None = column(
        "message sizes, summed over calls: the tensor of an all-reduce, a broadcast or a send, the "
        "gathered output of an all-gather",
        "B",
        source="nccl-tests, PERFORMANCE.md",
    )


@row
class SampleRow:
    """One sample of a rank and GPU; where there is no GPU, one of the process alone.

    Times are those of the requests. What could not be read is null. Energy and the bytes of NVLink
    and PCIe count from the run's first sample.
    """

    rank: int = column("rank whose process sampled", "1")
    process_id: int = column("number of that process", "1")
    gpu: int | None = column("GPU as torch counts", "1")
    gpu_uuid: str | None = column("its UUID as NVML writes it")
    time_s: float = column("when, since the start of the run", "s")
    gpu_utilization_pct: int | None = column("time in which the GPU ran a kernel", "%")
    memory_utilization_pct: int | None = column("time in which its memory was read or written", "%")
    memory_used_bytes: int | None = column("memory that is taken on it", "B")
    sm_clock_mhz: int | None = column("clock of its multiprocessors", "MHz")
    max_sm_clock_mhz: int | None = column("highest that it allows", "MHz")
    memory_clock_mhz: int | None = column("clock of its memory", "MHz")
    power_w: float | None = column("power that it draws", "W")
    energy_mj: int | None = column("its energy counter, since the first sample", "mJ")
    temperature_c: int | None = column("its temperature", "degC")
    throttle_reasons: int | None = column("NVML's mask of what holds its clocks down", "1")
    throttle_names: Sequence[str] | None = column("the same in words")
    nvlink_tx_bytes: int | None = column("sent over NVLink, since the first sample", "B")
    nvlink_rx_bytes: int | None = column("received over NVLink, since the first sample", "B")
    pcie_tx_bytes: int | None = column("sent over PCIe, since the first sample", "B")
    pcie_rx_bytes: int | None = column("received over PCIe, since the first sample", "B")
    gpu_process_ids: Sequence[int] | None = column(
        "processes that compute on it; one that the process of the rank has started counts as it",
        "1",
    )
    process_cpu_pct: float | None = column("processor time of this process, of one core", "%")
    process_rss_bytes: int | None = column("memory that this process has resident", "B")


@row
class SpanRow:
    """A stretch of compute, or a communication call, of an observed run.

    Times are on a clock that the ranks of one node share. Steps are those of the steps table, and
    after them one of the phase `drain`, in which a stage receives the last tokens. A call that was
    made and not seen has no times.
    """

    rank: int = column("rank of the placement", "1")
    phase: str = column("phase of the step: prefill, decode or drain")
    step: int = column("number of the step", "1")
    kind: str = column(
        "compute, the operation of a call, or stall: the host waits for another stage before it "
        "launches a receive"
    )
    fused: bool | None = column(
        "whether the kernel of a call also computes, as an all-reduce with a norm does"
    )
    axis: str | None = column(
        "mesh axis of a call's group; null where a kernel communicates and its call is not known"
    )
    call_phase: str | None = column(
        "phase of the tokens that a call carried: a stage receives those of the last prompts "
        "within its first decode step"
    )
    call_step: int | None = column(
        "number of the step whose tokens a call carried; the ranks of its group agree in it", "1"
    )
    bytes: int | None = column("size of a call's message", "B")
    start_us: float | None = column("when it began; null where a call was not seen", "us")
    end_us: float | None = column("when it ended; null where a call was not seen", "us")

    @property
    def when(self) -> Span | None:
        """When it was; None for a call that was not seen."""
        if self.start_us is None or self.end_us is None:
            return None
        return self.start_us, self.end_us


@row
class KernelRow:
    """One kernel of one decode step of one rank, as Nsight Compute counted it. A kernel that
    communicates is left out.

    The step is the fullest of a short run, taken once more by that rank alone and launched kernel
    by kernel. What the GPU or the version of Nsight Compute does not count is null.
    """

    rank: int = column("rank that took the step", "1")
    num_requests: int = column("requests in the step", "requests")
    number: int = column("its place among the kernels of the step, from 0", "1")
    kernel: str = column("its name, demangled")
    grid: str = column("blocks of the launch, as (132, 1, 1)")
    block: str = column("threads of a block, likewise")
    time_us: float | None = column("how long it ran", "us", source="gpu__time_duration.sum")
    dram_bytes: int | None = column(
        "bytes that went to and from the GPU's memory", "B", source="dram__bytes.sum"
    )
    dram_pct: float | None = column(
        "throughput of the GPU's memory, of its peak",
        "%",
        source="dram__throughput.avg.pct_of_peak_sustained_elapsed",
    )
    l2_bytes: int | None = column("bytes that went through L2", "B", source="lts__t_bytes.sum")
    l2_pct: float | None = column(
        "throughput of L2, of its peak",
        "%",
        source="lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    )
    l2_hit_pct: float | None = column(
        "accesses to L2 that found their sector there", "%", source="lts__t_sector_hit_rate.pct"
    )
    registers: int | None = column(
        "registers of a thread", "1", source="launch__registers_per_thread"
    )
    occupancy_pct: float | None = column(
        "warps that were active on a multiprocessor, of the most that it can have",
        "%",
        source="sm__warps_active.avg.pct_of_peak_sustained_active",
    )
    tensor_pct: float | None = column(
        "cycles in which tensor cores were at work, of all",
        "%",
        source="sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    )


@row
class FabricRow:
    """One thing that a node was measured to do by `orchestrator calibrate`."""

    host: str = column("name of the machine")
    device_name: str = column("name of the device")
    kind: str = column("cache, hbm, gemm, decode_gemm or collective")
    op: str = column("what was done: copy, m x n x k, all_reduce ...")
    dtype: str | None = column("element type")
    mode: str | None = column("eager or graph")
    rank: int = column("rank that reports", "1")
    group: Sequence[int] | None = column("ranks that took part in a collective", "1")
    group_size: int = column("how many these are", "1")
    nodes: int | None = column("nodes that these are on; null where it was not looked at", "1")
    bytes: int = column(
        "bytes that went through memory or, of a collective, the message",
        "B",
        source="nccl-tests, PERFORMANCE.md",
    )
    time_us: float | None = column("time of a call: the `percentile` of its `samples`", "us")
    percentile: float | None = column("which percentile of the samples; 50 is their median", "%")
    samples: int | None = column("how many times it was timed, several calls in a row each", "1")
    algbw: float | None = column("bytes over time", "GB/s")
    busbw: float | None = column(
        "algbw times the bus factor of the operation", "GB/s", source="nccl-tests, PERFORMANCE.md"
    )
    tflops: float | None = column("arithmetic rate", "TFLOP/s")
    held_down: Sequence[str] | None = column(
        "what held clocks or power down while the rank measured; null where NVML did not say"
    )


REQUESTS = Table("requests", RequestRow)
STEPS = Table("steps", StepRow)
COLLECTIVES = Table("collectives", CollectiveRow)
TELEMETRY = Table("telemetry", SampleRow)
SPANS = Table("spans", SpanRow)
FABRIC = Table("fabric", FabricRow)
# Column of a kernel -> the metric of Nsight Compute that it is.
COUNTERS = {one.name: one.source for one in columns(KernelRow) if one.source}


class AttentionTime(NamedTuple):
    """The attention of one step of a phase, all layers of the rank, when it runs by itself: its
    seconds, and the multiplications and additions of scores and sums (2 a multiply-add)."""

    phase: str
    seconds: float
    operations: int


@dataclass(frozen=True, slots=True)
class Call:
    """One communication call as the host saw it.

    bytes: its message as nccl-tests counts it, None where that is not known. phase: of the tokens
    that it carries. start, end: seconds of `time.perf_counter`; both 0 inside a replayed graph.
    step: whose tokens it carries; None: those of the step in which it is made.
    """

    op: str
    axis: str
    bytes: int | None
    phase: str
    start: float = 0.0
    end: float = 0.0
    step: int | None = None
