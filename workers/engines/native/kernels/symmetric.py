"""All-reduce through memory of GPUs of one node that all of them reach: torch's symmetric memory,
without multicast. Nothing here makes the host wait, and a captured call can be replayed.

`OneShot` is for small messages: every rank hands its whole message to every other one, and each
sums, alone or with the residual and the norm behind the sum. A product in `streamed` can hand over
its own outputs; the kernel that sums is placed beside it, and looks for them. `TwoShot` is for
larger messages: each rank sums a part, and hands it to the others. Their kernels are Triton.

A message travels as 64-bit words: 32 bits of values, and the number of the call. A 64-bit store is
seen whole or not at all, so a reader that finds the number has the values too: no flag and no fence
is needed. Every program of a kernel has slots of its own on each rank, for each
sender, in two sets that take turns, and counts its own calls on the device. Before it writes a set
again, it has had the words of the others of the call between, or of who had words of them all: the
reader had ended the call before that one by then, and reads the set no more.
"""
# Triton's decorator has no types, and pointers have none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import in_turn, launched, let_on, wait
from workers.engines.native.kernels.fp8 import Fp8, Norm
from workers.engines.native.kernels.fused import scaled
from workers.engines.native.kernels.peer_memory import Messages, Shared, home, warps_of, written
from workers.engines.native.kernels.reference import Outbox

PIECE = 1024  # elements of a message that one program sums


class Slots:
    """Where the programs of a kernel receive words, on every rank of a group.

    programs: at most so many. elements: of a message, that one program has. areas: for words of so
    many. Every rank of the group makes it at once.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        programs: int,
        elements: int,
        areas: int,
    ) -> None:
        words = -(-elements * dtype.itemsize // 4)
        self._words = Shared(group, device, torch.int64, programs * 2 * areas * words)
        calls = torch.zeros(programs, dtype=torch.int32, device=device)
        self.arguments = (self._words.places, calls, group.rank())  # of a kernel


class PeerSum(Messages):
    """Sums over a group through memory that its GPUs share; every rank makes it at once. areas: see
    `Slots`."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        most: int,
        areas: int,
    ) -> None:
        super().__init__(dtype, width, most)
        self._pieces = Slots(group, device, dtype, triton.cdiv(self._most, PIECE), PIECE, areas)
        self._ranks = (group.size(), triton.next_power_of_2(group.size()))

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group, in place: in float32, rounded once, on each rank the same."""
        grid, tensors = (triton.cdiv(x.numel(), PIECE),), (x, *self._pieces.arguments)
        sizes = (x.numel(), PIECE, *self._ranks)
        self._kernel()[grid](*tensors, *sizes, num_warps=4, **launched(len(x)))
        return x

    def _kernel(self) -> Any:
        raise NotImplementedError

    def outbox(self, rows: int) -> Outbox | None:
        """See `GroupSum`."""
        return None

    def all_reduce_norm(self, x: Any, residual: Tensor, norm: Norm) -> Tensor | Fp8:
        """residual += the sum of `x` over the group, in place, then its norm."""
        raise NotImplementedError


class OneShot(PeerSum):
    """Each rank has all parts and sums."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        most: int,
        handed: int = 0,
    ) -> None:
        """handed: most rows that products may hand over."""
        super().__init__(group, device, dtype, width, most, group.size())
        packs = width > 0 and width % 16 == 0 and dtype.itemsize == 2
        self._handed = handed if packs else 0
        rows = max(self._most // width, self._handed) if width else 0
        self._rows = Slots(group, device, dtype, rows, width, group.size()) if rows else None

    def _kernel(self) -> Any:
        return _one_shot_all_reduce

    def outbox(self, rows: int) -> Outbox | None:
        """See `GroupSum`."""
        if not 0 < rows <= self._handed:
            return None
        assert self._rows is not None
        return Outbox(*self._rows.arguments, self._ranks[0])

    def takes(self, x: Tensor | Outbox) -> bool:
        """Its `outbox` too, for `all_reduce_norm`."""
        return isinstance(x, Outbox) or super().takes(x)

    def fuses(self, x: Tensor | Outbox) -> bool:
        """Its `outbox` too."""
        return isinstance(x, Outbox) or super().fuses(x)

    def all_reduce_norm(self, x: Tensor | Outbox, residual: Tensor, norm: Norm) -> Tensor | Fp8:
        """See `PeerSum`. One program a row."""
        assert self._rows is not None
        rows = len(residual)
        made, out, sizes = self.made(residual, norm.reads)
        sent = isinstance(x, Outbox)
        tensors = (residual if sent else x, residual, norm.weight, *out, *self._rows.arguments)
        ways = {"num_warps": warps_of(sizes[1]), **launched(rows)}
        _one_shot_all_reduce_norm[(rows,)](*tensors, norm.eps, *sizes, sent, *self._ranks, **ways)
        return made


class TwoShot(PeerSum):
    """A piece is summed by one rank, which hands the sum to the others: two ways over the link, and
    of each rank as much as all of its message instead of that much to each other. The norm is
    behind it: one program a row, or a row on one rank, is slower than two kernels."""

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype, most: int
    ) -> None:
        super().__init__(group, device, dtype, 0, most, group.size() + 1)

    def _kernel(self) -> Any:
        return _two_shot_all_reduce


@triton.jit(do_not_specialize=["rank", "count"])
def _one_shot_all_reduce(
    x_ptr, places_ptr, calls_ptr, rank, count,
    block: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    _all_reduce(x_ptr, places_ptr, calls_ptr, rank, count, block, ranks, padded, early, False)


@triton.jit(do_not_specialize=["rank", "count"])
def _two_shot_all_reduce(
    x_ptr, places_ptr, calls_ptr, rank, count,
    block: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    _all_reduce(x_ptr, places_ptr, calls_ptr, rank, count, block, ranks, padded, early, True)


@triton.jit
def _all_reduce(
    x_ptr, places_ptr, calls_ptr, rank, count,
    block: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr, early: tl.constexpr,
    two_shot: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    at = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    total = _summed(x, places_ptr, calls_ptr, rank, block, ranks, padded, two_shot, False)
    tl.store(x_ptr + at, total.to(x.dtype), mask=at < count)


@triton.jit(do_not_specialize=["rank"])
def _one_shot_all_reduce_norm(
    x_ptr, res_ptr, w_ptr, out_ptr, scales_ptr, static_ptr, places_ptr, calls_ptr, rank, eps,
    width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr, static: tl.constexpr,
    sent: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """sent: a product has sent the words, and what is at `x_ptr` is the residual. Then the next
    product may ask for its weights at once, and words are looked for while the one before still
    runs."""
    at = tl.arange(0, block)
    inside, row = at < width, tl.program_id(0) * width + at
    weight = tl.load(w_ptr + at, mask=inside, other=0.0)
    if sent:
        let_on(early)
    else:
        in_turn(early)
    # From L2, as is the number of the call: another multiprocessor may have written it.
    x = tl.load(x_ptr + row, mask=inside, other=0.0, cache_modifier=".cg")
    residual = x
    if not sent:
        residual = tl.load(res_ptr + row, mask=inside, other=0.0)  # while the words travel
    total = _summed(x, places_ptr, calls_ptr, rank, width, ranks, padded, False, sent)
    x = total.to(x.dtype) + residual
    out, program = scaled(x, weight, width, eps), tl.program_id(0)
    if sent:
        wait(early)
    tl.store(res_ptr + row, x, mask=inside)
    written(out, out_ptr, scales_ptr, static_ptr, program, width, block, columns, static)


@triton.jit
def _summed(
    x, places_ptr, calls_ptr, rank,
    width: tl.constexpr, ranks: tl.constexpr, padded: tl.constexpr, two_shot: tl.constexpr,
    sent: tl.constexpr,
):  # fmt: skip
    """The sum over the ranks of the first `width` elements of `x` [block], in float32; the others
    are zero. padded: the power of two from `ranks` on. sent: the words are on their way, and of
    `x` the dtype alone counts."""
    share: tl.constexpr = 32 // x.dtype.primitive_bitwidth  # elements of a word
    words: tl.constexpr = (width + share - 1) // share
    areas: tl.constexpr = ranks + 1 if two_shot else ranks
    at = tl.arange(0, x.shape[0] // share)
    call = tl.load(calls_ptr + tl.program_id(0), cache_modifier=".cg") + 1
    number = call.to(tl.uint32).to(tl.uint64) << 32
    slots = (tl.program_id(0) * 2 + (call & 1)).to(tl.int64) * areas * words
    own, sender = home(places_ptr, rank, tl.uint64) + slots, tl.arange(0, padded)
    if two_shot:
        result = _in_two_shots(x, places_ptr, own, slots, rank, number, words, ranks, padded)
        found = result[None, :]
    else:
        if sent:  # while none is there, one word of each is asked for
            _received(own + sender * words + words - 1, sender < ranks, number)
        else:
            message = packed(x) | number
            for turn in tl.static_range(ranks):  # each rank begins with another one
                target = home(places_ptr, (rank + turn) % ranks, tl.uint64) + slots + rank * words
                tl.store(target + at, message, mask=at < words, cache_modifier=".wt")
        wanted = (sender < ranks)[:, None] & (at < words)[None, :]
        found = _received(own + sender[:, None] * words + at[None, :], wanted, number)
    tl.store(calls_ptr + tl.program_id(0), call)
    return _total(found, x.dtype)


@triton.jit
def _in_two_shots(
    x, places_ptr, own, slots, rank, number, words: tl.constexpr, ranks: tl.constexpr,
    padded: tl.constexpr,
):  # fmt: skip
    """The words of the sum, which one rank makes, and hands to the others."""
    values, sender, owner = packed(x), tl.arange(0, padded), tl.program_id(0) % ranks
    at = tl.arange(0, values.shape[0])
    if rank == owner:
        wanted = ((sender < ranks) & (sender != rank))[:, None] & (at < words)[None, :]
        parts = _received(own + sender[:, None] * words + at[None, :], wanted, number)
        mine = (sender == rank)[:, None] & (at < words)[None, :]
        parts = tl.where(mine, values[None, :], parts)
        result = packed(_total(parts, x.dtype).to(x.dtype))
        for turn in tl.static_range(1, ranks):
            target = home(places_ptr, (rank + turn) % ranks, tl.uint64) + slots + ranks * words
            tl.store(target + at, result | number, mask=at < words, cache_modifier=".wt")
    else:
        target = home(places_ptr, owner, tl.uint64) + slots + rank * words
        tl.store(target + at, values | number, mask=at < words, cache_modifier=".wt")
        result = _received(own + ranks * words + at, at < words, number)
    return result


@triton.jit
def _received(source, wanted, number):
    """The words at `source` once all that are `wanted` have the number; the others are zero."""
    none = tl.zeros(source.shape, tl.uint64) + number
    found, is_there = none, 0
    while is_there == 0:
        found = tl.load(source, mask=wanted, other=none, volatile=True)
        is_there = tl.min(((found >> 32) == (number >> 32)).to(tl.int32))
    return found


@triton.jit
def _total(words, dtype: tl.constexpr):
    """The sum over the first dim of the values in words [ranks, words], in float32."""
    if dtype.primitive_bitwidth == 32:
        total = tl.sum(words.to(tl.uint32).to(tl.float32, bitcast=True), 0)
    else:
        total = tl.interleave(tl.sum(_wide(words, dtype), 0), tl.sum(_wide(words >> 16, dtype), 0))
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
