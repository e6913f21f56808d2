"""All-reduce of large messages through memory of GPUs of one node that all of them reach: torch's
symmetric memory, without multicast. For small ones see `symmetric`, whose calls are numbered alike.

Every rank hands its whole message to every other one. A program has one row of it, or several of a
message of many. It writes them, as they are, into memory of the others, and then a flag: the number
of the call. So a message is half as large on the link as one whose words carry the number, but a
flag follows its values only once a fence has waited for them. A rank sums what it has received,
alone or with the residual and the norm behind the sum.

There are two sets of rows, which take turns. Before a program writes a set again, it has seen the
others' flags of the call between, so their kernels of the call before that one had ended by then.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import in_turn, launched
from workers.engines.native.kernels.fused import scaled
from workers.engines.native.kernels.symmetric import Shared

ROW = 4096  # elements of a row where no norm is fused
# Rows of a program, where there are so many that a fence and a wait for each takes too long; and
# from how many bytes on.
MANY, MANY_BYTES = 4, 1 << 23


class Flagged:
    """Sums over a group; see `workers.backends.GroupSum`. Every rank of the group makes it at once.

    dtype: of the messages. width: elements of a row to be normed; 0: no norm is fused. most: bytes
    of the largest message.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        most: int,
    ) -> None:
        self._dtype, self._width, self._most = dtype, width, most // dtype.itemsize
        self._row, few = width or ROW, min(most, MANY_BYTES) // dtype.itemsize
        sizes = {1: few} | ({MANY: self._most} if self._most > few else {})
        self._few, self._places = (
            few,
            {
                chunk: Places(group, device, dtype, triton.cdiv(size, self._row), self._row, chunk)
                for chunk, size in sizes.items()
            },
        )

    def takes(self, x: Tensor) -> bool:
        """Whether `all_reduce` sums `x`."""
        return x.dtype == self._dtype and x.is_contiguous() and 0 < x.numel() <= self._most

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group, in place: in float32, rounded once, on each rank the same."""
        grid, arguments, ways = self._call(x)
        _flagged_all_reduce[grid](x, *arguments, **ways)
        return x

    def fuses(self, x: Tensor) -> bool:
        """Whether `all_reduce_norm` takes `x`."""
        return self.takes(x) and x.dim() == 2 and x.shape[1] == self._width

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += the sum of `x` over the group, in place, then its norm; see `Pointwise`."""
        out, (grid, arguments, ways) = torch.empty_like(x), self._call(x)
        _flagged_all_reduce_norm[grid](x, residual, weight, out, eps, *arguments, **ways)
        return out

    def _call(self, x: Tensor) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
        """The grid, and what both kernels are told."""
        chunk = 1 if x.numel() <= self._few else MANY
        block = triton.next_power_of_2(self._row)
        ways = {"num_warps": min(max(block // 512, 4), 16), **launched(len(x))}
        places, grid = self._places[chunk], triton.cdiv(x.numel(), self._row * chunk)
        return (grid,), (x.numel(), *places.arguments, self._row, block, chunk), ways


class Places:
    """Where the programs of a kernel receive rows and flags, on every rank of a group.

    rows: at most so many, of `width` elements each. chunk: how many of them a program has.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        rows: int,
        width: int,
        chunk: int,
    ) -> None:
        ranks, programs = group.size(), triton.cdiv(rows, chunk)
        self._values = Shared(group, device, dtype, 2 * ranks * programs * chunk * width)
        self._flags = Shared(group, device, torch.int32, ranks * programs)
        calls = torch.zeros(programs, dtype=torch.int32, device=device)
        places = (self._values.places, self._flags.places, calls)
        self.arguments = (*places, group.rank(), programs, ranks)  # of a kernel


@triton.jit(do_not_specialize=["rank", "programs"])
def _flagged_all_reduce(
    x_ptr, count, values_ptr, flags_ptr, calls_ptr, rank, programs, ranks: tl.constexpr,
    width: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    at, first = tl.arange(0, block), tl.program_id(0).to(tl.int64) * chunk * width
    call, begin = _begun(calls_ptr, programs, ranks, width, chunk)
    for row in tl.static_range(chunk):
        place = first + row * width + at
        inside = (at < width) & (place < count)
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        mine = begin + (rank * programs * chunk + row).to(tl.int64) * width
        _hand_out(x, inside, values_ptr, mine, rank, ranks)
    _meet(flags_ptr, call, rank, programs, ranks)
    for row in tl.static_range(chunk):
        place = first + row * width + at
        inside = (at < width) & (place < count)
        if chunk > 1:
            x = tl.load(x_ptr + place, mask=inside, other=0.0)
        total = _summed(
            x, inside, values_ptr, begin + row * width, rank, programs * chunk * width, ranks
        )
        tl.store(x_ptr + place, total.to(x.dtype), mask=inside)
    tl.store(calls_ptr + tl.program_id(0), call)


@triton.jit(do_not_specialize=["rank", "programs"])
def _flagged_all_reduce_norm(
    x_ptr, res_ptr, w_ptr, out_ptr, eps, count, values_ptr, flags_ptr, calls_ptr, rank, programs,
    ranks: tl.constexpr, width: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    at, first = tl.arange(0, block), tl.program_id(0).to(tl.int64) * chunk * width
    weight = tl.load(w_ptr + at, mask=at < width, other=0.0)
    in_turn(early)
    call, begin = _begun(calls_ptr, programs, ranks, width, chunk)
    for row in tl.static_range(chunk):
        place = first + row * width + at
        inside = (at < width) & (place < count)
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        mine = begin + (rank * programs * chunk + row).to(tl.int64) * width
        _hand_out(x, inside, values_ptr, mine, rank, ranks)
    if chunk == 1:
        residual = tl.load(res_ptr + place, mask=inside, other=0.0)  # while the row travels
    _meet(flags_ptr, call, rank, programs, ranks)
    for row in tl.static_range(chunk):
        place = first + row * width + at
        inside = (at < width) & (place < count)
        if chunk > 1:
            x = tl.load(x_ptr + place, mask=inside, other=0.0)
            residual = tl.load(res_ptr + place, mask=inside, other=0.0)
        total = _summed(
            x, inside, values_ptr, begin + row * width, rank, programs * chunk * width, ranks
        )
        added = total.to(x.dtype) + residual
        tl.store(res_ptr + place, added, mask=inside)
        tl.store(out_ptr + place, scaled(added, weight, width, eps), mask=inside)
    tl.store(calls_ptr + tl.program_id(0), call)


@triton.jit
def _begun(calls_ptr, programs, ranks: tl.constexpr, width: tl.constexpr, chunk: tl.constexpr):
    """The number of this program's call, and where the first row that it receives of the first rank
    lies in the values of each rank."""
    call = tl.load(calls_ptr + tl.program_id(0)) + 1
    row = ((call & 1) * ranks * programs + tl.program_id(0)).to(tl.int64) * chunk
    return call, row * width


@triton.jit
def _hand_out(x, inside, values_ptr, begin, rank, ranks: tl.constexpr):
    """Write a row `x` [block] into the values of the other ranks, from `begin` on."""
    at = tl.arange(0, x.shape[0])
    for turn in tl.static_range(1, ranks):  # each rank begins with another one
        values = tl.load(values_ptr + (rank + turn) % ranks).to(tl.pointer_type(x.dtype))
        tl.store(tl.multiple_of(values, 16) + begin + at, x, mask=inside)


@triton.jit
def _meet(flags_ptr, call, rank, programs, ranks: tl.constexpr):
    """Tell the other ranks that this program has handed out its rows, and wait for theirs."""
    program = tl.program_id(0)
    tl.debug_barrier()  # all threads have written; one releases the flag
    for turn in tl.static_range(1, ranks):
        flags = tl.load(flags_ptr + (rank + turn) % ranks).to(tl.pointer_type(tl.int32))
        tl.atomic_xchg(flags + rank * programs + program, call, sem="release", scope="sys")
    own = tl.load(flags_ptr + rank).to(tl.pointer_type(tl.int32))
    for turn in tl.static_range(1, ranks):
        flag = own + (rank + turn) % ranks * programs + program
        while tl.atomic_add(flag, 0, sem="acquire", scope="sys") - call < 0:
            pass
    tl.debug_barrier()  # one has acquired; all read


@triton.jit
def _summed(x, inside, values_ptr, begin, rank, apart, ranks: tl.constexpr):
    """The sum of a row over the ranks, in their order, in float32. begin: where that of the first
    rank lies here. apart: elements from there to that of the next."""
    own = tl.load(values_ptr + rank).to(tl.pointer_type(x.dtype))
    place = tl.multiple_of(own, 16) + begin + tl.arange(0, x.shape[0])
    total = tl.zeros(x.shape, tl.float32)
    for sender in tl.static_range(ranks):
        is_other = inside & (sender != rank)
        part = tl.load(
            place + sender * apart.to(tl.int64), mask=is_other, other=0.0, cache_modifier=".cg"
        )
        total += tl.where(sender == rank, x, part).to(tl.float32)
    return total
