"""Products of few rows whose weights are on their way before the kernel before has ended, in Gluon,
for Hopper, in 16 bits and in FP8: a kernel that is launched early can ask for them while it waits,
as no kernel writes them. Triton's own pipeline asks for weights and tokens together, and so only
after the wait.

Tiles of the matrix come by TMA into a ring in shared memory, each stage with a barrier that counts
bytes. Programs are persistent, one a multiprocessor at most: the ring runs on from one tile of
outputs into the next.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from workers.engines.native.kernels.early import in_turn, launched
from workers.engines.native.kernels.fp8 import Fp8, Fp8Weight
from workers.engines.native.kernels.reference import FP8
from workers.engines.native.kernels.tiles import Tile, height_of


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """As `products.linear`. weight: written by no kernel that is launched early, nor by the one
    before."""
    return _product(x, weight, (), bias, x.dtype, tile)


def linear_fp8(
    x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype, tile: Tile
) -> Tensor:
    """As `fused_fp8.linear`, of a matrix with a scale a channel, and of tokens with one each."""
    return _product(x.values, weight.values, (x.scales, weight.scales), bias, dtype, tile)


def _product(
    x: Tensor,
    weight: Tensor,
    scales: tuple[()] | tuple[Tensor, Tensor],
    bias: Tensor | None,
    dtype: torch.dtype,
    tile: Tile,
) -> Tensor:
    rows, outputs = x.shape[0], weight.shape[0]
    out = torch.empty(rows, outputs, dtype=dtype, device=x.device)
    programs = min(triton.cdiv(outputs, tile.outputs), _multiprocessors(x.device))
    tiled = (_tiled(x, height_of(rows), tile.inputs), _tiled(weight, tile.outputs, tile.inputs))
    _streamed[(programs,)](
        *tiled, *(scales or (out, out)), out if bias is None else bias, out, rows, outputs,
        x.shape[1], tile.stages, bool(scales), bias is not None, num_warps=tile.warps,
        **launched(rows),
    )  # fmt: skip
    return out


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _tiled(matrix: Tensor, height: int, width: int) -> Any:
    """What TMA is told of a contiguous matrix that it reads in tiles, which are zero beyond it."""
    rows, columns = matrix.shape
    layout = _layout(height, width, matrix.dtype == FP8)
    return TensorDescriptor(matrix, [rows, columns], [columns, 1], [height, width], layout)


@cache
def _layout(height: int, width: int, is_fp8: bool) -> Any:
    """Of a tile in shared memory, alike for both dtypes of 16 bits."""
    dtype = gl.float8e4nv if is_fp8 else gl.bfloat16
    return gl.NVMMASharedLayout.get_default_for([height, width], dtype)


@gluon.jit(do_not_specialize=["rows"])
def _streamed(
    x_desc, w_desc, x_scales_ptr, w_scales_ptr, bias_ptr, out_ptr, rows, outputs,
    inputs: gl.constexpr, stages: gl.constexpr, scaled: gl.constexpr, has_bias: gl.constexpr,
    early: gl.constexpr,
):  # fmt: skip
    height: gl.constexpr = x_desc.block_type.shape[0]
    width: gl.constexpr = w_desc.block_type.shape[0]
    depth: gl.constexpr = w_desc.block_type.shape[1]
    bits: gl.constexpr = w_desc.dtype.primitive_bitwidth
    size: gl.constexpr = (height + width) * depth * bits // 8
    of_a_warp: gl.constexpr = [16, height, 256 // bits]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], of_a_warp)
    m = gl.arange(0, height, gl.SliceLayout(0, layout))
    w_ring = gl.allocate_shared_memory(w_desc.dtype, [stages, width, depth], w_desc.layout)
    x_ring = gl.allocate_shared_memory(x_desc.dtype, [stages, height, depth], x_desc.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    _begun(x_desc, w_desc, x_ring, w_ring, arrived, outputs, inputs, stages, size, early)
    if scaled:
        of_x = gl.load(x_scales_ptr + m, mask=m < rows, other=0.0)
    count = 0  # tiles that are multiplied
    for tile in range(gl.program_id(0), gl.cdiv(outputs, width), gl.num_programs(0)):
        out = tile * width + gl.arange(0, width, gl.SliceLayout(1, layout))
        if scaled:  # on their way while tiles are multiplied
            of_w = gl.load(w_scales_ptr + out, mask=out < outputs, other=0.0)
        acc = gl.zeros([width, height], gl.float32, layout)
        for _ in range(inputs // depth):
            slot = count % stages
            mbarrier.wait(arrived.index(slot), (count // stages) & 1)
            acc = warpgroup_mma(w_ring.index(slot), x_ring.index(slot).permute((1, 0)), acc)
            n, k = _place(count + stages, width, depth, inputs)
            mbarrier.expect(arrived.index(slot), size, pred=n < outputs)
            _ask(w_desc, n, k, arrived, w_ring, slot, n < outputs)
            _ask(x_desc, 0, k, arrived, x_ring, slot, n < outputs)
            count += 1
        if scaled:
            acc = acc * of_w[:, None] * of_x[None, :]
        _store(acc, bias_ptr, out_ptr, out, m, rows, outputs, has_bias)


@gluon.jit
def _begun(
    x_desc, w_desc, x_ring, w_ring, arrived, outputs, inputs: gl.constexpr, stages: gl.constexpr,
    size: gl.constexpr, early: gl.constexpr,
):  # fmt: skip
    """Ask for the first stages, each of `size` bytes: for weights, and for tokens in turn."""
    width: gl.constexpr = w_desc.block_type.shape[0]
    depth: gl.constexpr = w_desc.block_type.shape[1]
    for s in gl.static_range(stages):
        mbarrier.init(arrived.index(s), count=1)
    fence_async_shared()
    # A stage has arrived with all of its bytes, of weights and of tokens.
    for s in gl.static_range(stages):
        n, k = _place(s, width, depth, inputs)
        mbarrier.expect(arrived.index(s), size, pred=n < outputs)
        _ask(w_desc, n, k, arrived, w_ring, s, n < outputs)
    in_turn(early)  # only tokens are of the kernel before
    for s in gl.static_range(stages):
        n, k = _place(s, width, depth, inputs)
        _ask(x_desc, 0, k, arrived, x_ring, s, n < outputs)


@gluon.jit
def _place(count, width: gl.constexpr, depth: gl.constexpr, inputs: gl.constexpr):
    """Where this program's tile number `count` begins: output, input."""
    steps: gl.constexpr = inputs // depth
    tile = gl.program_id(0) + count // steps * gl.num_programs(0)
    return tile * width, count % steps * depth


@gluon.jit
def _ask(desc, row, column, arrived, ring, slot, wanted):
    place = (arrived.index(slot), ring.index(slot))
    tma.async_copy_global_to_shared(desc, [row, column], *place, pred=wanted)


@gluon.jit
def _store(acc, bias_ptr, out_ptr, out, m, rows, outputs, has_bias: gl.constexpr):
    """acc: [outputs of a tile, tokens] of the matrix's rows `out` and the tokens `m`."""
    if has_bias:
        acc += gl.load(bias_ptr + out, mask=out < outputs, other=0.0).to(gl.float32)[:, None]
    inside = (m < rows)[None, :] & (out < outputs)[:, None]
    place = out_ptr + m[None, :] * outputs + out[:, None]
    gl.store(place, acc.to(out_ptr.dtype.element_ty), mask=inside)
