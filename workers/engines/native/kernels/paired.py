"""What a product in `streamed` does with outputs that belong together, in Gluon: gate and up, which
are multiplied, and the two halves of a head, which rotary positions turn. So no kernel reads them
again.

A tile has both: of its rows, each 8 are followed by the 8 that belong to them. A thread that has
sums of the former has those of the latter.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from workers.engines.native.kernels.fused import narrowed, silu_times
from workers.engines.native.kernels.reference import FP8


def paired(matrix: Tensor, dim: int, box: list[int]) -> Any:
    """What TMA is told of a contiguous matrix of which it reads tiles of rows i and i + dim / 2 of
    each `dim`. box: rows and columns of a tile."""
    (rows, columns), (height, width) = matrix.shape, box
    shape = [rows // dim, dim // 16, 2, 8, columns]
    strides = [dim * columns, 8 * columns, dim // 2 * columns, columns, 1]
    tile = [1, height // 16, 2, 8, width]
    layout = in_shared(tuple(tile), matrix.dtype == FP8)
    return TensorDescriptor(matrix, shape, strides, tile, layout)


@cache
def in_shared(box: tuple[int, ...], is_fp8: bool) -> Any:
    """The layout of a tile in shared memory, alike for both dtypes of 16 bits."""
    return gl.NVMMASharedLayout.get_default_for(box, gl.float8e4nv if is_fp8 else gl.bfloat16)


@gluon.jit
def of_pairs(out, at, dim: gl.constexpr):
    """The outputs that a tile has in its rows `at`, which would be `out` if they were in order."""
    pair = out % dim // 16 * 8 + at % 8
    return out // dim * dim + at // 8 % 2 * (dim // 2) + pair


@gluon.jit
def _others(x):
    """Each 8 rows of x changed with the next 8."""
    width: gl.constexpr = x.shape[0]
    height: gl.constexpr = x.shape[1]
    pairs = gl.permute(gl.reshape(x, [width // 16, 2, 8, height]), (0, 2, 3, 1))
    first, second = gl.split(pairs)
    changed = gl.permute(gl.join(second, first), (0, 3, 1, 2))
    return gl.convert_layout(gl.reshape(changed, [width, height]), x.type.layout)


@gluon.jit
def keep_gated(
    made, out_ptr, largest_ptr, out, at, m, rows, tile, dim: gl.constexpr, scaled: gl.constexpr
):
    """Store silu(gate) x up of `made`, [outputs, tokens], and, to quantise by, the largest of each
    token."""
    gated, is_gate = silu_times(made, _others(made)), (at // 8 % 2 == 0)[:, None]
    to = out_ptr + m[None, :] * (dim // 2) + out[:, None]
    gl.store(to, gated, mask=(m < rows)[None, :] & is_gate)
    if scaled:
        sizes = gl.where(is_gate, gl.abs(gated.to(gl.float32)), 0.0)
        width: gl.constexpr = made.shape[0]
        gl.store(largest_ptr + m * (dim // width) + tile, gl.max(sizes, 0), mask=m < rows)


@gluon.jit
def angles(rope, positions, out, is_row, dim: gl.constexpr):
    """Cosines and sines for [outputs, tokens]."""
    place = positions[None, :] * (dim // 2) + (out % (dim // 2))[:, None]
    cos = gl.load(rope[0] + place, mask=is_row[None, :], other=0.0)
    return cos, gl.load(rope[1] + place, mask=is_row[None, :], other=0.0)


@gluon.jit
def keep_heads(
    made, turn, to, head, out, at, m, slots, rows, dim: gl.constexpr, heads: gl.constexpr,
    kv_heads: gl.constexpr,
):  # fmt: skip
    """Store `made`, [outputs, tokens] of one head: a query, or a key or value, which are cached.
    to: queries, keys and values."""
    wide, other = made.to(gl.float32), _others(made).to(gl.float32)
    other = gl.where((at // 8 % 2 == 0)[:, None], -other, other)
    turned = (wide * turn[0] + other * turn[1]).to(made.dtype)
    place = (out % dim)[:, None]
    if head < heads:
        _put(turned, to[0], m, head, heads, place, m < rows, dim)
    elif head < heads + kv_heads:
        _put(turned, to[1], slots, head - heads, kv_heads, place, m < rows, dim)
    else:
        _put(made, to[2], slots, head - heads - kv_heads, kv_heads, place, m < rows, dim)


@gluon.jit
def _put(x, to_ptr, rows, head, heads: gl.constexpr, place, is_row, dim: gl.constexpr):
    """x into the places `place` of a head, for the tokens or slots `rows`."""
    to = to_ptr + (rows[None, :] * heads + head) * dim + place
    gl.store(to, narrowed(x, to_ptr), mask=is_row[None, :])
