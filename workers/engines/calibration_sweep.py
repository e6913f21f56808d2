"""What the devices and links of a node can do: memory, matrix products and collectives, timed.

Every figure is the median of several samples, each of several calls in a row after one that is not
timed (it brings the ranks together). Data is random, since zeros take less power and run faster
than any model, and larger than the caches.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from strategies.traffic import bus_factor
from workers.device import device_name
from workers.rank import RankContext
from workers.records import FabricRow

Call = Callable[[], object]
Ranks = tuple[int, ...]
Row = dict[str, Any]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Sweep:
    """How much is measured. messages: bytes. memory_bytes: read and copied. gemms: m, n, k. weight:
    n, k of a decode product."""

    messages: tuple[int, ...]
    memory_bytes: int
    gemms: tuple[tuple[int, int, int], ...]
    weight: tuple[int, int]
    samples: int = 7
    calls: int = 8
    rows: tuple[int, ...] = (1, 32, 100)


# The weight is that of a 70B's MLP, cut over two GPUs.
GPU = Sweep(
    tuple(4 * KIB * 4**i for i in range(9)),
    GIB,
    ((8192, 8192, 8192), (8192, 28672, 8192)),
    (14336, 8192),
)
CPU = Sweep(
    tuple(4 * KIB * 4**i for i in range(6)),
    128 * MIB,
    ((512, 512, 512), (768, 768, 768)),
    (2048, 2048),
    5,
    2,
)
QUICK = Sweep((4 * KIB, 64 * KIB, MIB), 32 * MIB, ((256, 256, 256),), (1024, 1024), 3, 2)


def sweep_for(device: torch.device, quick: bool) -> Sweep:
    return QUICK if quick else GPU if device.type == "cuda" else CPU


@torch.inference_mode()
def measure(context: RankContext, sweep: Sweep) -> list[Row]:
    """Rows in the schema FABRIC. Every GPU is measured, of CPU workers the first alone (they share
    what is measured).

    Collectives run over the first 2, 4, ... ranks and over all of them; of every other pair the
    links are looked at, so that a weak one is seen. The first rank of a group reports. Every rank
    calls this at once.
    """
    device = context.device
    common = {
        "host": socket.gethostname(),
        "device_name": device_name(device),
        "rank": context.rank,
    }
    rows: list[Row] = []
    if device.type == "cuda" or context.rank == 0:
        rows.append(
            {"kind": "cache", "op": "capacity", "group_size": 1, "bytes": cache_bytes(device)}
        )
        for part in (memory, products, decode_products):
            rows.extend(part(device, sweep))
            _release(device)
    ranks = context.placement.num_ranks
    pairs = [pair for pair in itertools.combinations(range(ranks), 2) if pair != (0, 1)]
    whole = [(tuple(range(size)), COLLECTIVE_OPS, sweep.messages) for size in group_sizes(ranks)]
    for members, ops, messages in [
        *whole,
        *((pair, PAIR_OPS, (sweep.messages[0], sweep.messages[-1])) for pair in pairs),
    ]:
        group = dist.new_group(list(members))  # every rank, in the same order
        if context.rank in members:
            found = list(collectives(device, sweep, group, members, context.rank, ops, messages))
            rows.extend(found if context.rank == members[0] else ())
            _release(device)
    return [common | row for row in rows]


def group_sizes(ranks: int) -> list[int]:
    """2, 4, 8 ... and all of them; nothing for one rank."""
    powers = itertools.takewhile(lambda size: size < ranks, (2**i for i in itertools.count(1)))
    return [*powers, ranks] if ranks > 1 else []


# -- one device


def memory(device: torch.device, sweep: Sweep) -> Iterator[Row]:
    """Reading (a sum) and copying (bytes read plus bytes written) of more than the caches hold."""
    size = max(sweep.memory_bytes, min(2 * cache_bytes(device), GIB))
    x = torch.randn(size // 4, device=device)
    y = torch.empty_like(x)
    for op, call, moved in (("read", x.sum, size), ("copy", lambda: y.copy_(x), 2 * size)):
        yield _row("hbm", op, "float32", _median_us(device, sweep, call), moved)


def products(device: torch.device, sweep: Sweep) -> Iterator[Row]:
    """C[m, n] = A[m, k] B[n, k]^T: 2 m n k floating-point operations."""
    kinds = (
        ("bfloat16", "float8_e4m3fn", "float32")
        if device.type == "cuda"
        else ("float32", "bfloat16")
    )
    for kind, (m, n, k) in itertools.product(kinds, sweep.gemms):
        if kind == "float32" and device.type == "cuda" and (m, n, k) != sweep.gemms[0]:
            continue  # slow, and one shape tells
        a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        call = _product(a, b, getattr(torch, kind))
        if call is not None:
            us = _median_us(device, sweep, call)
            size = getattr(torch, kind).itemsize * (m * k + n * k) + m * n * (
                4 if kind == "float32" else 2
            )
            yield _row("gemm", f"{m}x{n}x{k}", kind, us, size) | {"tflops": 2e-6 * m * n * k / us}


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Call | None:
    """The product in `dtype`; None where this device has none in it."""
    a, b = a.to(dtype), b.to(dtype)
    if dtype != torch.float8_e4m3fn:
        return lambda: functional.linear(a, b)
    one = torch.ones((), device=a.device)

    def call() -> Tensor:
        return torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    try:
        call()
    except (RuntimeError, ValueError, NotImplementedError):  # before compute capability 8.9
        return None
    return call


def decode_products(device: torch.device, sweep: Sweep) -> Iterator[Row]:
    """A few rows times a weight, as in decoding: several weights in turn, so that none is found in
    a cache. Bytes of weight."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    n, k = sweep.weight
    size = n * k * dtype.itemsize
    count = max(2, -(-2 * min(cache_bytes(device), GIB) // size))
    weights = [torch.randn(n, k, device=device, dtype=dtype) for _ in range(count)]
    for m in sweep.rows:
        x, turn = torch.randn(m, k, device=device, dtype=dtype), itertools.cycle(weights)

        def call(x: Tensor = x, turn: Iterator[Tensor] = turn) -> Tensor:
            return functional.linear(x, next(turn))

        us = _median_us(device, sweep, call, max(sweep.calls, count))
        yield _row("decode_gemm", f"m{m}", str(dtype).removeprefix("torch."), us, size) | {
            "tflops": 2e-6 * m * n * k / us
        }


# -- several ranks


def collectives(
    device: torch.device,
    sweep: Sweep,
    group: dist.ProcessGroup,
    members: Ranks,
    rank: int,
    ops: Sequence[str],
    messages: Sequence[int],
) -> Iterator[Row]:
    """Every operation at every size of message (bytes), eager and (on a GPU) inside a CUDA
    graph."""
    size = len(members)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for op, message in itertools.product(ops, messages):
        count = message // dtype.itemsize // size * size
        source = torch.randn(count, device=device, dtype=dtype)
        x = source.clone()
        call = _collective(op, x, group, members, rank)

        def renew(x: Tensor = x, source: Tensor = source) -> None:
            x.copy_(source)  # sums of sums would overflow

        times = {
            "eager": _median_us(device, sweep, call, renew=renew),
            "graph": _in_graph_us(device, sweep, call, renew),
        }
        for mode, us in times.items():
            if us is not None:
                row = _row(
                    "collective",
                    op,
                    str(dtype).removeprefix("torch."),
                    us,
                    count * dtype.itemsize,
                    mode,
                    members,
                )
                yield row | {"busbw": row["algbw"] * bus_factor(op, size)}


COLLECTIVE_OPS = ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
PAIR_OPS = ("send_recv",)


def _collective(op: str, x: Tensor, group: dist.ProcessGroup, members: Ranks, rank: int) -> Call:
    """One call over `x` [message]. send_recv is a ring: every rank sends to the next one and
    receives from the one before."""
    size, place = len(members), members.index(rank)
    part = x.numel() // size
    if op == "all_reduce":
        return lambda: dist.all_reduce(x, group=group)
    if op == "all_gather":
        mine = x[place * part : (place + 1) * part].clone()
        return lambda: dist.all_gather_into_tensor(x, mine, group=group)
    out = x.new_empty(part if op == "reduce_scatter" else x.numel())
    if op == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(out, x, group=group)
    after, before = members[(place + 1) % size], members[place - 1]

    def ring() -> None:
        pair = [dist.P2POp(dist.isend, x, after, group), dist.P2POp(dist.irecv, out, before, group)]
        for work in dist.batch_isend_irecv(pair):
            work.wait()

    return ring


def _in_graph_us(device: torch.device, sweep: Sweep, call: Call, renew: Call) -> float | None:
    """Microseconds a call inside a CUDA graph of `calls` of them; None without CUDA, or where it
    cannot be captured."""
    if device.type != "cuda":
        return None
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(sweep.calls):
                call()
    except RuntimeError:
        return None
    us = _median_us(device, sweep, graph.replay, calls=1, renew=renew) / sweep.calls
    graph.reset()
    return us


# -- timing


def _median_us(
    device: torch.device,
    sweep: Sweep,
    call: Call,
    calls: int | None = None,
    renew: Call | None = None,
) -> float:
    """Microseconds a call: the median over samples of `calls` in a row. The first sample warms up
    and is left out."""
    calls, times = calls or sweep.calls, []
    for _ in range(sweep.samples + 1):
        if renew is not None:
            renew()
        call()
        times.append(_elapsed_us(device, call, calls) / calls)
    return statistics.median(times[1:])


def _elapsed_us(device: torch.device, call: Call, calls: int) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e6 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


def _row(
    kind: str, op: str, dtype: str, us: float, size: int, mode: str = "eager", members: Ranks = ()
) -> Row:
    row: Row = {"kind": kind, "op": op, "dtype": dtype, "mode": mode, "bytes": size, "time_us": us}
    row |= {"group": list(members) or None, "group_size": len(members) or 1}
    return row | {"algbw": size / us / 1e3}


# -- the device


def cache_bytes(device: torch.device) -> int:
    """Bytes that may stay in caches from one pass over the weights to the next: L2 of a GPU, all
    levels of a CPU; 0 if unknown."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    total = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            total += int(file.read_text().strip().removesuffix("K")) * KIB
    return total


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
