"""Memory of GPUs of one node that all ranks of a group reach: torch's symmetric memory, without
multicast; and what all sums through it have in common. `symmetric` and `flagged` are the sums.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor
from torch._C._distributed_c10d import _SymmetricMemory
from torch.distributed import _symmetric_memory as memory

from workers.engines.native.kernels.fp8 import Fp8, Fp8Weight
from workers.engines.native.kernels.fused_fp8 import room, stored


class Shared:
    """Memory that each rank of a group has, and all of them reach. Every rank makes it at once.

    size: elements. places: where that of each rank begins, int64 [ranks].
    """

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype, size: int
    ) -> None:
        # `memory.empty` imports all of sympy first, which takes seconds, to check the size.
        self._own = _SymmetricMemory.empty_strided_p2p((size,), (1,), dtype, device)
        self._own.zero_()  # the number of no call
        self._handle = handle = memory.rendezvous(self._own, group)
        buffers = (handle.get_buffer(rank, (size,), dtype) for rank in range(group.size()))
        self.places = torch.tensor([one.data_ptr() for one in buffers], device=device)
        handle.barrier(channel=0)  # on the device: none writes before all have cleared


class Messages:
    """Which messages a sum takes. dtype: of them. width: elements of a row to be normed; 0: no norm
    is fused. most: bytes of the largest one."""

    def __init__(self, dtype: torch.dtype, width: int, most: int) -> None:
        self._dtype, self._width, self._most = dtype, width, most // dtype.itemsize

    def takes(self, x: Any) -> bool:
        """Whether `all_reduce` sums `x`."""
        if not isinstance(x, Tensor):
            return False
        return x.dtype == self._dtype and x.is_contiguous() and 0 < x.numel() <= self._most

    def fuses(self, x: Any) -> bool:
        """Whether `all_reduce_norm` takes `x`."""
        return self.takes(x) and x.dim() == 2 and 0 < self._width == x.shape[1]

    def made(
        self, x: Tensor, reads: Fp8Weight | None
    ) -> tuple[Tensor | Fp8, tuple[Tensor, Tensor, Tensor], tuple[int, int, int, bool]]:
        """What `all_reduce_norm` makes of `x`, and what its kernel is told of that: see
        `fused_fp8.room`. Columns of 0 are those of a norm in its own dtype."""
        if reads is not None:
            tensors, sizes = room(x, x.shape[1], reads)
            return Fp8(*tensors[:2]), tensors, sizes
        out = torch.empty_like(x)
        return out, (out, out, out), (x.shape[1], triton.next_power_of_2(x.shape[1]), 0, False)


def warps_of(block: int) -> int:
    """Of a program that has `block` elements of a row."""
    return min(max(block // 512, 4), 16)


@triton.jit
def home(places_ptr, rank, dtype: tl.constexpr):
    """Where what a rank shares begins, which is of a dtype."""
    return tl.multiple_of(tl.load(places_ptr + rank).to(tl.pointer_type(dtype)), 16)


@triton.jit
def written(
    x, out_ptr, scales_ptr, static_ptr, row,
    width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr, static: tl.constexpr,
):  # fmt: skip
    """Write a row [block], quantised unless `columns` is 0."""
    if columns:
        wide = x.to(tl.float32)
        stored(wide, out_ptr, scales_ptr, static_ptr, row, width, block, columns, static)
    else:
        at = tl.arange(0, block)
        tl.store(out_ptr + row * width + at, x, mask=at < width)
