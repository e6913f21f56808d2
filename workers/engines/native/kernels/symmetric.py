"""All-reduce through memory of GPUs of one node that all of them reach: torch's symmetric memory,
without multicast. Nothing here makes the host wait, and a captured call can be replayed.

`OneShot` is for small messages: every rank hands its whole message to every other one, and each
sums. Its kernels are Triton, alone or with the residual and the norm behind the sum. `TwoShot` is
for larger ones: each rank sums a part, and hands it to the others. It is torch's own operator,
which rounds to the dtype after each addition.

A message of `OneShot` travels as 64-bit words: 32 bits of values, and the number of the call. A
64-bit store is seen whole or not at all, so a reader that finds the number has the values too: no
flag and no fence is needed. Every program of a kernel has slots of its own on each rank, for each
sender, in two sets that take turns, and counts its own calls on the device. Before it writes a set
again, it has had the words of all others of the call between: each other rank had ended the call
before that one by then, and reads the set no more.
"""
# Triton's decorator has no types, and pointers have none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed import _symmetric_memory as memory

from workers.engines.native.kernels.fused import scaled

SENT_BYTES = 3 << 19  # see `most_bytes`
TWO_SHOT_BYTES = 8 << 20  # the same; beyond, NCCL is as fast
PIECE = 1024  # elements of a message that one program sums


def most_bytes(ranks: int) -> int:
    """Of the largest message of `OneShot`. It goes to each other rank, so what counts is how much
    all of them get. Beyond, NCCL with the norm behind it is as fast: from 640 KiB on between four
    H200, and not yet at 1.25 MiB between two (benchmarks/allreduce.py)."""
    return SENT_BYTES // (ranks - 1)


class Slots:
    """Where the programs of a kernel receive words, on every rank of a group.

    programs: at most so many. elements: of a message, that one program has. Every rank of the group
    makes it at once.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        programs: int,
        elements: int,
    ) -> None:
        self.rank, self.ranks = group.rank(), group.size()
        words = -(-elements * dtype.itemsize // 4)
        size = programs * 2 * self.ranks * words
        self._words = memory.empty(size, dtype=torch.int64, device=device)
        self._words.zero_()  # the number of no call
        self._handle = handle = memory.rendezvous(self._words, group)
        places = [handle.get_buffer(r, (size,), torch.int64).data_ptr() for r in range(self.ranks)]
        self.places = torch.tensor(places, device=device)
        self.calls = torch.zeros(programs, dtype=torch.int32, device=device)
        handle.barrier(channel=0)  # on the device: none writes before all have cleared

    @property
    def arguments(self) -> tuple[Tensor, Tensor, int]:
        """What a kernel is told of them."""
        return self.places, self.calls, self.rank


class OneShot:
    """Sums of small messages over a group. dtype: of the messages. width: elements of a row to be
    normed; 0: no norm is fused. most: bytes of the largest message; None: `most_bytes`."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        most: int | None = None,
    ) -> None:
        self._dtype, self._width = dtype, width
        self._most = (most or most_bytes(group.size())) // dtype.itemsize
        self._rows = self._most // width if width else 0
        self._pieces = Slots(group, device, dtype, triton.cdiv(self._most, PIECE), PIECE)
        self._of_rows = Slots(group, device, dtype, self._rows, width) if self._rows else None
        self._ranks = (group.size(), triton.next_power_of_2(group.size()))

    def takes(self, x: Tensor) -> bool:
        """Whether `all_reduce` sums `x`."""
        return x.dtype == self._dtype and x.is_contiguous() and 0 < x.numel() <= self._most

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group, in place: in float32, rounded once, on each rank the same."""
        grid, tensors = (triton.cdiv(x.numel(), PIECE),), (x, *self._pieces.arguments)
        _one_shot_all_reduce[grid](*tensors, x.numel(), PIECE, *self._ranks, num_warps=4)
        return x

    def fuses(self, x: Tensor) -> bool:
        """Whether `all_reduce_norm` takes `x`."""
        return self.takes(x) and x.dim() == 2 and x.shape[1] == self._width

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += the sum of `x` over the group, in place, then its norm; see `Pointwise`. One
        program a row."""
        assert self._of_rows is not None
        out, block = torch.empty_like(x), triton.next_power_of_2(self._width)
        tensors = (x, residual, weight, out, *self._of_rows.arguments)
        sizes = (self._width, block, *self._ranks)
        warps = min(max(block // 512, 4), 16)
        _one_shot_all_reduce_norm[(x.shape[0],)](*tensors, eps, *sizes, num_warps=warps)
        return out


class TwoShot:
    """Sums of larger messages over a group, by torch's operator: each rank sums a part. dtype:
    bfloat16 or float32."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        most_bytes: int = TWO_SHOT_BYTES,
    ) -> None:
        self._shared = memory.empty(most_bytes // dtype.itemsize, dtype=dtype, device=device)
        memory.rendezvous(self._shared, group)
        self._group = group.group_name

    def takes(self, x: Tensor) -> bool:
        """Whether `all_reduce` sums `x`: it moves 16 bytes at a time."""
        aligned = x.nbytes % 16 == 0 and x.storage_offset() * x.itemsize % 16 == 0
        fits = x.dtype == self._shared.dtype and 0 < x.nbytes <= self._shared.nbytes
        return fits and aligned and x.is_contiguous()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group, in place: the same bits on each rank."""
        part = self._shared[: x.numel()].view(x.shape).copy_(x)
        torch.ops.symm_mem.two_shot_all_reduce_out(part, "sum", self._group, x)
        return x


@triton.jit(do_not_specialize=["rank", "count"])
def _one_shot_all_reduce(
    x_ptr, places_ptr, calls_ptr, rank, count,
    block: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    total = summed(x, places_ptr, calls_ptr, rank, block, ranks, padded)
    tl.store(x_ptr + at, total.to(x.dtype), mask=at < count)


@triton.jit(do_not_specialize=["rank"])
def _one_shot_all_reduce_norm(
    x_ptr, res_ptr, w_ptr, out_ptr, places_ptr, calls_ptr, rank, eps,
    width: tl.constexpr, block: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, block)
    inside, row = at < width, tl.program_id(0) * width + at
    x = tl.load(x_ptr + row, mask=inside, other=0.0)
    residual = tl.load(res_ptr + row, mask=inside, other=0.0)  # both while the words travel
    weight = tl.load(w_ptr + at, mask=inside, other=0.0)
    total = summed(x, places_ptr, calls_ptr, rank, width, ranks, padded)
    x = total.to(x.dtype) + residual
    tl.store(res_ptr + row, x, mask=inside)
    tl.store(out_ptr + row, scaled(x, weight, width, eps), mask=inside)


@triton.jit
def summed(
    x, places_ptr, calls_ptr, rank,
    width: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """The sum over the ranks of the first `width` elements of `x` [block], in float32; the others
    are zero. padded: the power of two from `ranks` on."""
    share: tl.constexpr = 32 // x.dtype.primitive_bitwidth  # elements of a word
    words: tl.constexpr = (width + share - 1) // share
    values = packed(x)
    at = tl.arange(0, values.shape[0])
    call = tl.load(calls_ptr + tl.program_id(0)) + 1
    number = call.to(tl.uint32).to(tl.uint64)
    slots = (tl.program_id(0) * 2 + (call & 1)).to(tl.int64) * ranks * words
    for turn in tl.static_range(ranks):  # each rank begins with another one
        target = _place(places_ptr, (rank + turn) % ranks) + slots + rank * words
        tl.store(target + at, values | (number << 32), mask=at < words, cache_modifier=".wt")
    sender = tl.arange(0, padded)
    wanted = (sender < ranks)[:, None] & (at < words)[None, :]
    source = _place(places_ptr, rank) + slots + sender[:, None] * words + at[None, :]
    none = tl.zeros([padded, values.shape[0]], tl.uint64) + (number << 32)
    found, is_there = none, 0
    while is_there == 0:
        found = tl.load(source, mask=wanted, other=none, volatile=True)
        is_there = tl.min(((found >> 32) == number).to(tl.int32))
    tl.store(calls_ptr + tl.program_id(0), call)
    if share == 1:
        total = tl.sum(found.to(tl.uint32).to(tl.float32, bitcast=True), 0)
    else:
        low, high = tl.sum(_wide(found, x.dtype), 0), tl.sum(_wide(found >> 16, x.dtype), 0)
        total = tl.interleave(low, high)
    return total


@triton.jit
def packed(x):
    """`x`, of 32 bits, or pairs of 16, as the lower half of 64-bit words."""
    if x.dtype.primitive_bitwidth == 32:
        words = x.to(tl.uint32, bitcast=True).to(tl.uint64)
    else:
        low, high = tl.split(tl.reshape(x.to(tl.uint16, bitcast=True), [x.shape[0] // 2, 2]))
        words = low.to(tl.uint64) | (high.to(tl.uint64) << 16)
    return words


@triton.jit
def _wide(words, dtype: tl.constexpr):
    """The lowest 16 bits of each word as a value."""
    return words.to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _place(places_ptr, rank):
    """Where the words of a rank begin."""
    place = tl.load(places_ptr + rank).to(tl.pointer_type(tl.uint64))
    return tl.multiple_of(place, 16)
