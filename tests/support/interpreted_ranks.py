"""`OneShot`, `TwoShot` and `Flagged` without a GPU: processes stand for ranks, their memory is the
shared one, and Triton's interpreter runs the kernels.

    TRITON_INTERPRET=1 python tests/support/interpreted_ranks.py OneShot|TwoShot|Flagged RANKS DTYPE

Exits with 1 and says which call went wrong where one did. The interpreter does not round to
bfloat16 as a GPU does.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels import flagged, fp8, peer_memory, reference, symmetric
from workers.engines.native.kernels.fp8 import Fp8, Fp8Weight, Norm

WIDTH, CALLS, WORDS = 208, 60, 300_000  # 64-bit words of a rank, for slots
ROWS = 5  # of a fused call, at most
COUNTS = (1, 7, 1024, 1025, 3000, 4096)
READS = Fp8Weight(torch.zeros(1, WIDTH), torch.ones(1, 1), (1, WIDTH))


class Group(NamedTuple):
    """A process group."""

    number: int
    members: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.members


class Memory:
    """In place of torch's symmetric memory: what is made on one rank, every rank has."""

    def __init__(self, rank: int, pools: list[Tensor], barrier: Barrier) -> None:
        self._rank, self._pools, self._barrier, self._next = rank, pools, barrier, 0
        self._newest: list[Tensor] = []

    def empty_strided_p2p(
        self, sizes: tuple[int], strides: tuple[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        (size,) = sizes
        begin, self._next = self._next, self._next - (-size * dtype.itemsize // 8)
        self._newest = [pool[begin : self._next].view(dtype)[:size] for pool in self._pools]
        return self._newest[self._rank]

    def rendezvous(self, words: Tensor, group: Group) -> Memory:
        return self

    def get_buffer(self, rank: int, sizes: tuple[int], dtype: torch.dtype) -> Tensor:
        return self._newest[rank]

    def barrier(self, channel: int) -> None:
        self._barrier.wait()


@triton.jit
def handed(
    x_ptr, places_ptr, calls_ptr, rank,
    width: tl.constexpr, block: tl.constexpr, ranks: tl.constexpr,
):  # fmt: skip
    """Put a row of 16 bits a value where a product in Gluon does, which the interpreter has not."""
    row, at = tl.program_id(0), tl.arange(0, block)
    words = symmetric.packed(tl.load(x_ptr + row * width + at, mask=at < width, other=0.0))
    call, half = tl.load(calls_ptr + row) + 1, tl.arange(0, block // 2)
    words |= call.to(tl.uint32).to(tl.uint64) << 32
    place = ((row * 2 + (call & 1)) * ranks + rank) * (width // 2) + half
    for to in tl.static_range(ranks):
        home = peer_memory.home(places_ptr, to, tl.uint64)
        tl.store(home + place, words, mask=half < width // 2)


def drawn(rank: int, call: int, *shape: int, dtype: torch.dtype) -> Tensor:
    seed = torch.Generator().manual_seed(1000 * call + rank)
    return torch.randn(*shape, generator=seed).to(dtype)


def right(
    one: symmetric.PeerSum | flagged.Flagged, rank: int, ranks: int, call: int, dtype: torch.dtype
) -> bool:
    """Whether a call made what it should."""
    alone = call % 3 < 2 or isinstance(one, symmetric.TwoShot)
    if alone:
        shape: tuple[int, ...] = (COUNTS[call % len(COUNTS)],)
    else:
        shape = (1 + call % ROWS, WIDTH)
    parts = torch.stack([drawn(r, call, *shape, dtype=dtype) for r in range(ranks)])
    mine, expected = parts[rank].clone(), reference.summed(parts)
    if alone:
        assert one.takes(mine)
        return torch.equal(one.all_reduce(mine), expected)
    residual, weight = drawn(8, call, *shape, dtype=dtype), drawn(9, call, WIDTH, dtype=dtype)
    ours, theirs = residual.clone(), residual.clone()
    assert one.fuses(mine)
    reads = READS if call % 2 else None  # quantised or not
    to = one.outbox(len(mine)) if call % 4 else None
    if to is not None:
        handed[(len(mine),)](mine, *to[:3], WIDTH, triton.next_power_of_2(WIDTH), to.ranks)
    out = one.all_reduce_norm(mine if to is None else to, ours, Norm(weight, 1e-5, reads))
    wanted = reference.summed_norm(parts, theirs, weight, 1e-5)
    assert isinstance(out, Fp8) == (reads is not None)
    if isinstance(out, Fp8):
        near = is_quantised(out, wanted)
    else:
        near = torch.allclose(out, wanted, rtol=4e-3, atol=4e-3)
    return torch.equal(ours, theirs) and near


def is_quantised(out: Fp8, wanted: Tensor) -> bool:
    """The interpreter halves what it should round up to a power of two: a few values."""
    theirs = fp8.quantize(wanted, READS)
    equal = (out.values.float() == theirs.values.float()).float().mean()
    return torch.allclose(out.scales, theirs.scales, rtol=4e-3) and float(equal) > 0.9


def run(
    rank: int, kind: str, ranks: int, dtype: torch.dtype, pools: list[Tensor], barrier: Barrier
) -> None:
    """One rank. In turn one of them is late."""
    torch.set_num_threads(1)
    shared: Any = Memory(rank, pools, barrier)
    peer_memory.memory = peer_memory._SymmetricMemory = shared
    device, most = torch.device("cpu"), max(COUNTS) * dtype.itemsize
    sizes = {"TwoShot": (most,), "Flagged": (WIDTH, most), "OneShot": (WIDTH, most, ROWS)}[kind]
    one = getattr(flagged if kind == "Flagged" else symmetric, kind)(
        Group(rank, ranks), device, dtype, *sizes
    )
    for call in range(CALLS):
        if call % ranks == rank:
            time.sleep(0.005)
        if not right(one, rank, ranks, call, dtype):
            sys.exit(f"call {call} is wrong on rank {rank}")


def main() -> None:
    """All ranks."""
    kind, ranks, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
    context = multiprocessing.get_context("fork")
    pools = [torch.zeros(WORDS, dtype=torch.int64).share_memory_() for _ in range(ranks)]
    barrier = context.Barrier(ranks)
    arguments = ((rank, kind, ranks, dtype, pools, barrier) for rank in range(ranks))
    processes = [context.Process(target=run, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
