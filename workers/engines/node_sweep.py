"""What the engine `calibration` measures of a node: memory, matrix products and collectives.

Data is random, since zeros take less power and run faster than any model, and larger than the
caches.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from workers.device import device_name
from workers.engines.calibration_parts import DECODE, MEMORY, ON_ONE_DEVICE, PRODUCTS
from workers.engines.node_collectives import several_ranks
from workers.engines.node_conditions import watching
from workers.engines.node_timing import (
    GIB,
    KIB,
    MIB,
    Operation,
    Sweep,
    Timing,
    dtype_name,
    median_us,
    release,
)
from workers.rank import RankContext
from workers.records import FabricRow

FP8 = torch.float8_e4m3fn


class Measurement:
    """A node while it is measured, its GPU watched from the first part to `end`. Every rank takes
    the same parts at once."""

    def __init__(self, context: RankContext, sweep: Sweep) -> None:
        self._context, self._sweep = context, sweep
        self._found: list[Timing] = []
        self._watching = contextlib.ExitStack()
        self._watched = self._watching.enter_context(watching(context.device))

    @torch.inference_mode()
    def take(self, part: str) -> None:
        """Measure one of the parts of a calibration."""
        self._found += _part(self._context, self._sweep, part)

    def found(self) -> list[FabricRow]:
        """What this rank has measured so far, each row with what held its GPU down until now."""
        host, device = socket.gethostname(), device_name(self._context.device)
        held = self._watched.held_down() if self._watched else None
        rank, samples = self._context.rank, self._sweep.samples
        return [one.row(host, device, rank, samples, held) for one in self._found]

    def end(self) -> None:
        """Watch the GPU no more."""
        self._watching.close()


def _part(context: RankContext, sweep: Sweep, part: str) -> Iterator[Timing]:
    """Every GPU is measured. The CPU workers of a node share its memory and cores, so only the
    first one measures them."""
    device = context.device
    if part not in ON_ONE_DEVICE:
        yield from several_ranks(context, sweep, part)
    elif device.type != "cpu" or context.rank == 0:
        if part == MEMORY:
            yield Timing("cache", "capacity", cache_bytes(device))
        yield from MEASURES[part](device, sweep)
        release(device)


def memory(device: torch.device, sweep: Sweep) -> Iterator[Timing]:
    """Reading (a sum) and copying (bytes read plus bytes written) of more than the caches hold."""
    size = max(sweep.memory_bytes, min(2 * cache_bytes(device), GIB))
    part = torch.randn(MIB // 4, device=device)  # made once: random numbers are slow on a CPU
    x = part.repeat(size // MIB)
    y = torch.empty_like(x)
    cases: tuple[tuple[str, Operation, int], ...] = (
        ("read", x.sum, x.nbytes),
        ("copy", lambda: y.copy_(x), 2 * x.nbytes),
    )
    for op, call, moved in cases:
        us = median_us(device, sweep, call)
        yield Timing("hbm", op, moved, "float32", "eager", us)


def products(device: torch.device, sweep: Sweep) -> Iterator[Timing]:
    """C[m, n] = A[m, k] B[n, k]^T: 2 m n k floating-point operations; bytes of all three."""
    for dtype, (m, n, k) in _product_cases(device, sweep):
        a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        call = _product(a, b, dtype)
        if call is not None:
            out = torch.float32 if dtype == torch.float32 else torch.bfloat16
            size = dtype.itemsize * (m * k + n * k) + out.itemsize * m * n
            us, flop = median_us(device, sweep, call), 2 * m * n * k
            yield Timing("gemm", f"{m}x{n}x{k}", size, dtype_name(dtype), "eager", us, flop=flop)


def _product_cases(
    device: torch.device, sweep: Sweep
) -> Iterator[tuple[torch.dtype, tuple[int, int, int]]]:
    """Element types and shapes. On a GPU float32 is slow, and one shape of it is enough."""
    if device.type != "cuda":
        yield from itertools.product((torch.float32, torch.bfloat16), sweep.gemms)
        return
    yield from itertools.product((torch.bfloat16, FP8), sweep.gemms)
    yield torch.float32, sweep.gemms[0]


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Operation | None:
    """The product in `dtype`; None where this device cannot compute it."""
    a, b = a.to(dtype), b.to(dtype)
    if dtype != FP8:
        return lambda: functional.linear(a, b)
    one = torch.ones((), device=a.device)
    return _if_it_runs(lambda: _scaled(a, b, one, one))


def _scaled(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
    """a b^T of FP8. of_a, of_b: one scale each, or [m, 1] and [1, n]."""
    return torch._scaled_mm(a, b.t(), of_a, of_b, out_dtype=torch.bfloat16, use_fast_accum=True)


def _if_it_runs(call: Operation) -> Operation | None:
    try:
        call()
    except (RuntimeError, ValueError, NotImplementedError):  # before compute capability 8.9
        return None
    return call


def decode_products(device: torch.device, sweep: Sweep) -> Iterator[Timing]:
    """A few rows times a weight, as in decoding; bytes of the weight.

    Several weights take turns, so that none is found in a cache.
    """
    n, k = sweep.weight
    for dtype in (torch.bfloat16, FP8) if device.type == "cuda" else (torch.float32,):
        size = n * k * dtype.itemsize
        count = max(2, -(-2 * min(cache_bytes(device), GIB) // size))
        weight = torch.randn(n, k, device=device).to(dtype)
        weights = [weight.clone() for _ in range(count)]
        for m in sweep.rows:
            call = _in_turn(torch.randn(m, k, device=device).to(dtype), weights)
            if call is not None:
                us, flop = median_us(device, sweep, call, max(sweep.calls, count)), 2 * m * n * k
                name = dtype_name(dtype)
                yield Timing("decode_gemm", f"m{m}", size, name, "eager", us, flop=flop)


MEASURES = {MEMORY: memory, PRODUCTS: products, DECODE: decode_products}


def _in_turn(x: Tensor, weights: Sequence[Tensor]) -> Operation | None:
    """The product of `x` with another of `weights` at each call; None where this device cannot
    compute it. In FP8 a row and a channel have a scale each."""
    turn = itertools.cycle(weights)
    if x.dtype != FP8:
        return lambda: functional.linear(x, next(turn))
    of_x = torch.ones(x.shape[0], 1, device=x.device)
    of_w = torch.ones(1, weights[0].shape[0], device=x.device)
    return _if_it_runs(lambda: _scaled(x, next(turn), of_x, of_w))


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
