"""All-reduce of large messages through memory of GPUs of one node that all of them reach: torch's
symmetric memory, without multicast. For small ones see `symmetric`, whose calls are numbered alike.

Every rank hands its whole message to every other one. A program has one row of it. It writes the
row, as it is, into memory of the others, and then a flag: the number of the call. So a message is
half as large on the link as one whose words carry the number, but a flag follows its values only
once a fence has waited for them. A rank sums what it has received, alone or with the residual and
the norm behind the sum.

There are two sets of rows, which take turns. Before a program writes a set again, it has seen the
others' flags of the call between, so their kernels of the call before that one had ended by then.

A program waits for that of its number on the other ranks, and a large message has more programs
than a GPU holds at once. A GPU begins them in the order of their numbers. So the first one that has
not ended everywhere has begun everywhere, and none waits for ever.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import in_turn, launched
from workers.engines.native.kernels.fp8 import Fp8, Norm
from workers.engines.native.kernels.fused import scaled
from workers.engines.native.kernels.peer_memory import Messages, Shared, home, warps_of, written

ROW = 4096  # elements that a program has where no norm is fused


class Flagged(Messages):
    """Sums over a group; see `workers.backends.GroupSum`. Every rank of the group makes it at
    once."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        most: int,
    ) -> None:
        super().__init__(dtype, width, most)
        ranks, self._row = group.size(), width or ROW
        rows = triton.cdiv(self._most, self._row)
        # A rank's own part is in them too, unused: so each lies where its number says.
        self._values = Shared(group, device, dtype, 2 * ranks * rows * self._row)
        self._flags = Shared(group, device, torch.int32, ranks * rows)
        calls = torch.zeros(rows, dtype=torch.int32, device=device)
        self._arguments = (self._values.places, self._flags.places, calls, group.rank())
        self._rows, self._ranks = rows, ranks

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group, in place: in float32, rounded once, on each rank the same."""
        grid, block = (triton.cdiv(x.numel(), self._row),), triton.next_power_of_2(self._row)
        sizes = (x.numel(), self._rows, self._row, block, self._ranks)
        _flagged_all_reduce[grid](x, *self._arguments, *sizes, **_ways(x, block))
        return x

    def outbox(self, rows: int) -> None:
        """None: its flags are its own."""

    def all_reduce_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor | Fp8:
        """See `PeerSum`."""
        made, out, sizes = self.made(x, norm.reads)
        tensors = (x, residual, norm.weight, *out, *self._arguments)
        among = (norm.eps, self._rows, *sizes, self._ranks)
        _flagged_all_reduce_norm[(len(x),)](*tensors, *among, **_ways(x, sizes[1]))
        return made


def _ways(x: Tensor, block: int) -> dict[str, int | bool]:
    return {"num_warps": warps_of(block), **launched(len(x))}


@triton.jit(do_not_specialize=["rank", "rows"])
def _flagged_all_reduce(
    x_ptr, values_ptr, flags_ptr, calls_ptr, rank, count, rows, width: tl.constexpr,
    block: tl.constexpr, ranks: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    at = tl.arange(0, block)
    place = tl.program_id(0).to(tl.int64) * width + at
    inside = (at < width) & (place < count)
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    call, own = _handed_out(x, inside, values_ptr, flags_ptr, calls_ptr, rank, rows, width, ranks)
    total = _summed(x, inside, own, rank, rows, width, ranks)
    tl.store(x_ptr + place, total.to(x.dtype), mask=inside)
    tl.store(calls_ptr + tl.program_id(0), call)


@triton.jit(do_not_specialize=["rank", "rows"])
def _flagged_all_reduce_norm(
    x_ptr, res_ptr, w_ptr, out_ptr, scales_ptr, static_ptr, values_ptr, flags_ptr, calls_ptr,
    rank, eps, rows, width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr,
    static: tl.constexpr, ranks: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, block)
    inside, place = at < width, tl.program_id(0).to(tl.int64) * width + at
    weight = tl.load(w_ptr + at, mask=inside, other=0.0)
    in_turn(early)
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    residual = tl.load(res_ptr + place, mask=inside, other=0.0)
    call, own = _handed_out(x, inside, values_ptr, flags_ptr, calls_ptr, rank, rows, width, ranks)
    x = _summed(x, inside, own, rank, rows, width, ranks).to(x.dtype) + residual
    tl.store(res_ptr + place, x, mask=inside)
    out, program = scaled(x, weight, width, eps), tl.program_id(0).to(tl.int64)
    written(out, out_ptr, scales_ptr, static_ptr, program, width, block, columns, static)
    tl.store(calls_ptr + tl.program_id(0), call)


@triton.jit
def _handed_out(
    x, inside, values_ptr, flags_ptr, calls_ptr, rank, rows, width: tl.constexpr,
    ranks: tl.constexpr,
):  # fmt: skip
    """Hand this program's row `x` [block] to the other ranks, and wait for theirs. Returns the
    number of the call, and where the first rank's row lies here."""
    program, at = tl.program_id(0), tl.arange(0, x.shape[0])
    call = tl.load(calls_ptr + program) + 1
    begin = ((call & 1).to(tl.int64) * ranks * rows + program) * width
    for turn in tl.static_range(1, ranks):  # each rank begins with another one
        other = (rank + turn) % ranks
        target = home(values_ptr, other, x.dtype) + begin + rank.to(tl.int64) * rows * width
        tl.store(target + at, x, mask=inside)
    tl.debug_barrier()  # all of the program has written, and what releases the flag is one thread
    for turn in tl.static_range(1, ranks):
        flags = home(flags_ptr, (rank + turn) % ranks, tl.int32)
        tl.atomic_xchg(flags + rank * rows + program, call, sem="release", scope="sys")
    mine = home(flags_ptr, rank, tl.int32)
    for turn in tl.static_range(1, ranks):
        flag = mine + (rank + turn) % ranks * rows + program
        while tl.atomic_add(flag, 0, sem="acquire", scope="sys") - call < 0:
            pass
    tl.debug_barrier()  # and what has acquired is one thread too
    return call, home(values_ptr, rank, x.dtype) + begin


@triton.jit
def _summed(x, inside, own, rank, rows, width: tl.constexpr, ranks: tl.constexpr):
    """The sum of this program's row over the ranks, in their order, in float32."""
    at, total = tl.arange(0, x.shape[0]), tl.zeros(x.shape, tl.float32)
    for sender in tl.static_range(ranks):
        is_other = inside & (sender != rank)
        place = own + sender * rows * width + at
        part = tl.load(place, mask=is_other, other=0.0, cache_modifier=".cg")
        total += tl.where(sender == rank, x, part).to(tl.float32)
    return total
