"""What a product in `streamed` does with outputs that belong together, in Gluon: gate and up, which
are multiplied, the two halves of a head, which rotary positions turn, and neighbours, which travel
to other ranks in one word. So no kernel reads them again.

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
    return _described(matrix, dim, box, (8, dim // 2, 1))


def neighbours(matrix: Tensor, box: list[int]) -> Any:
    """The same, of tiles of rows 2 i and 2 i + 1."""
    return _described(matrix, matrix.shape[0], box, (16, 1, 2))


def _described(matrix: Tensor, dim: int, box: list[int], apart: tuple[int, int, int]) -> Any:
    """apart: rows of the matrix from a 16 of a tile to the next, between the two that belong
    together, and from one of 8 to the next."""
    (rows, columns), (height, width) = matrix.shape, box
    shape, tile = [rows // dim, dim // 16, 2, 8, columns], [1, height // 16, 2, 8, width]
    strides = [*(count * columns for count in (dim, *apart)), 1]
    layout = in_shared(tuple(tile), matrix.dtype == FP8)
    return TensorDescriptor(matrix, shape, strides, tile, layout)


@cache
def in_shared(box: tuple[int, ...], is_fp8: bool) -> Any:
    """The layout of a tile in shared memory, alike for both dtypes of 16 bits."""
    return gl.NVMMASharedLayout.get_default_for(box, gl.float8e4nv if is_fp8 else gl.bfloat16)


@gluon.jit
def outputs_of(first, at, dim: gl.constexpr, are_neighbours: gl.constexpr):
    """The outputs that a tile has in its rows `at`. first: of the tile. dim: see `paired`; 0: they
    are in order."""
    out = first + at
    if are_neighbours:
        out = first + at // 16 * 16 + at % 8 * 2 + at // 8 % 2
    elif dim:
        pair = out % dim // 16 * 8 + at % 8
        out = out // dim * dim + at // 8 % 2 * (dim // 2) + pair
    return out


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
def keep(made, out_ptr, out, m, rows, outputs):
    """Store `made`, [outputs, tokens]."""
    inside = (m < rows)[None, :] & (out < outputs)[:, None]
    gl.store(out_ptr + m[None, :] * outputs + out[:, None], made, mask=inside)


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


@gluon.jit
def hand_over(made, places_ptr, calls, rank, ranks: gl.constexpr, out, at, m, rows, outputs):
    """Store `made`, [outputs, tokens], in memory of each rank, in words as `symmetric` has them.
    calls: the number of the call of each token."""
    pair = made.to(gl.uint16, bitcast=True).to(gl.uint64)
    other = _others(made).to(gl.uint16, bitcast=True).to(gl.uint64)
    words = pair | (other << 16) | (calls.to(gl.uint32).to(gl.uint64) << 32)[None, :]
    slots = ((m.to(gl.int64) * 2 + (calls & 1)) * ranks + rank) * (outputs // 2)
    place = slots[None, :] + (out // 2)[:, None]
    mask = (m < rows)[None, :] & ((at // 8 % 2 == 0) & (out < outputs))[:, None]
    for turn in gl.static_range(ranks):  # each rank begins with another one
        home = gl.load(places_ptr + (rank + turn) % ranks).to(gl.pointer_type(gl.uint64))
        gl.store(home + place, words, mask=mask, cache_modifier=".wt")
