"""How the engine `calibration` measures: the sizes, how a call is timed, and the row of a result.

Every time is the median of several samples: half of them are faster. A sample is several calls in a
row, after one call that is not timed and that brings the ranks together.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from strategies.traffic import bus_factor
from workers.clock import elapsed_ms, moment, wait
from workers.device import synchronize
from workers.records import FabricRow

Operation = Callable[[], object]
Ranks = tuple[int, ...]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PERCENTILE = 50.0  # of the samples that a time is: their median


@dataclass(frozen=True, slots=True)
class Sweep:
    """How much is measured.

    messages: bytes of the collectives. memory_bytes: read and copied. gemms: (m, n, k). weight: (n,
    k) of a decode product, rows: its m. samples: how many the median is taken of; each is `calls`
    calls.
    """

    messages: tuple[int, ...]
    memory_bytes: int
    gemms: tuple[tuple[int, int, int], ...]
    weight: tuple[int, int]
    samples: int = 7
    calls: int = 8
    rows: tuple[int, ...] = (1, 32, 100)


# The weight is that of a 70B's MLP, cut over two GPUs.
GPU_SWEEP = Sweep(
    messages=tuple(4 * KIB * 4**i for i in range(9)),
    memory_bytes=GIB,
    gemms=((8192, 8192, 8192), (8192, 28672, 8192)),
    weight=(14336, 8192),
)
CPU_SWEEP = Sweep(
    messages=tuple(4 * KIB * 4**i for i in range(6)),
    memory_bytes=128 * MIB,
    gemms=((512, 512, 512), (768, 768, 768)),
    weight=(2048, 2048),
    samples=5,
    calls=2,
)
QUICK_SWEEP = Sweep(
    messages=(4 * KIB, 64 * KIB, MIB),
    memory_bytes=32 * MIB,
    gemms=((256, 256, 256),),
    weight=(1024, 1024),
    samples=3,
    calls=2,
)


def sweep_for(device: torch.device, quick: bool) -> Sweep:
    """The sweep of a kind of device; quick: a few sizes only."""
    if quick:
        return QUICK_SWEEP
    return GPU_SWEEP if device.type == "cuda" else CPU_SWEEP


@dataclass(frozen=True, slots=True)
class Timing:
    """One thing that was measured; the fields are columns of FabricRow.

    group: ranks that took part in a collective, () for one device. flop: floating-point operations
    of a call, 0 where they are not what was measured.
    """

    kind: str
    op: str
    bytes: int
    dtype: str | None = None
    mode: str | None = None
    time_us: float | None = None
    group: Ranks = ()
    flop: int = 0

    def row(
        self, host: str, device: str, rank: int, samples: int, held: Sequence[str] | None = None
    ) -> FabricRow:
        """The row of the fabric table, with the rates that follow from bytes and time.

        samples: how many the time is the median of. held: what held clocks or power down, None
        where that is unknown.
        """
        algbw = self.bytes / self.time_us / 1e3 if self.time_us else None
        ranks = len(self.group)
        return FabricRow(
            host=host,
            device_name=device,
            kind=self.kind,
            op=self.op,
            dtype=self.dtype,
            mode=self.mode,
            rank=rank,
            group=self.group or None,
            group_size=ranks or 1,
            nodes=None,  # which only the driver knows
            bytes=self.bytes,
            time_us=self.time_us,
            percentile=PERCENTILE if self.time_us else None,
            samples=samples if self.time_us else None,
            algbw=algbw,
            busbw=algbw * bus_factor(self.op, ranks) if algbw and ranks else None,
            tflops=1e-6 * self.flop / self.time_us if self.flop and self.time_us else None,
            held_down=held,
        )


def dtype_name(dtype: torch.dtype) -> str:
    """The name of an element type, as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def release(device: torch.device) -> None:
    """Give back the memory of what was measured before."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()


# -- times


def median_us(
    device: torch.device,
    sweep: Sweep,
    call: Operation,
    calls: int | None = None,
    renew: Operation | None = None,
) -> float:
    """Microseconds a call: the median over samples of `calls` in a row. The first sample warms up
    and is left out. renew: called before each sample."""
    calls, times = calls or sweep.calls, []
    for _ in range(sweep.samples + 1):
        if renew is not None:
            renew()
        call()
        times.append(_elapsed_us(device, call, calls) / calls)
    return statistics.median(times[1:])


def _elapsed_us(device: torch.device, call: Operation, calls: int) -> float:
    start = moment(device)
    for _ in range(calls):
        call()
    end = moment(device)
    wait(end)
    return 1e3 * elapsed_ms(start, end)


def captured(device: torch.device, step: Operation) -> Operation:
    """A step as a CUDA graph replays it; without CUDA as it is. It runs once before, which compiles
    its kernels."""
    step()
    if device.type != "cuda":
        return step
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def in_graph_us(
    device: torch.device, sweep: Sweep, call: Operation, renew: Operation
) -> float | None:
    """Microseconds a call inside a CUDA graph of `calls` of them; None without CUDA, or where it
    cannot be captured."""
    if device.type != "cuda":
        return None
    graph = torch.cuda.CUDAGraph()
    synchronize(device)
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(sweep.calls):
                call()
    except RuntimeError:
        return None
    us = median_us(device, sweep, graph.replay, calls=1, renew=renew) / sweep.calls
    graph.reset()
    return us
