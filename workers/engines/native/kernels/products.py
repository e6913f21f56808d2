"""Products of few rows by a matrix, in Triton, for Hopper: how fast weights are read is all that
counts. cuBLAS does the others. What a gated MLP computes with a product is in the product's kernel.

The matrix comes first: a tile of its rows is what the tensor cores take as their larger operand, 64
or 128 rows, and the tokens are the columns. So few tokens do not leave them idle, and weights go
from shared memory straight into them. `early` lets such a kernel be placed while the one before it
ends, which cuBLAS's are not.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import FEW_ROWS, in_turn, launched
from workers.engines.native.kernels.fused import silu, silu_mul

DTYPES = (torch.bfloat16, torch.float16)


class Tile(NamedTuple):
    """What a program has of a matrix at once. matrix_first: the matrix is the larger operand, else
    the tokens are. outputs, inputs: of the tile. stages: tiles on their way."""

    matrix_first: bool
    outputs: int
    inputs: int
    warps: int
    stages: int


# By how many programs there are at least. On 132 multiprocessors (docs/performance.md).
_TILES = ((100, Tile(True, 128, 128, 8, 4)), (64, Tile(True, 64, 128, 4, 5)))
_NARROW = ((100, Tile(False, 32, 256, 4, 4)), (1, Tile(False, 16, 512, 4, 3)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, summed in float32 and rounded once. x: [T, K], weight: [N, K], bias: [N]
    -> [T, N]."""
    tile = tile_of(x, weight)
    if tile is None:
        return F.linear(x, weight, bias)
    return _product(x, weight, bias, tile, gated=False)


def gated(x: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) x up of x weight^T, which has the bits of both kernels one after the other.
    x: [T, K], weight: [2 I, K], the gate first -> [T, I]."""
    tile = tile_of(x, weight)
    if tile is None:
        return silu_mul(F.linear(x, weight))
    return _product(x, weight, None, tile, gated=True)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile, gated: bool) -> Tensor:
    rows, inputs = x.shape
    width, outputs = tile.outputs, weight.shape[0]
    if gated:  # a program has as many columns of the gate as of what it is multiplied with
        width, outputs = width // 2, outputs // 2
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    tensors = (x, weight, out if bias is None else bias, out)
    sizes = (rows, outputs, inputs, max(16, triton.next_power_of_2(rows)))
    _linear[(triton.cdiv(outputs, width),)](
        *tensors, *sizes, width, tile.inputs, tile.matrix_first, bias is not None, gated,
        tile.stages, num_warps=tile.warps, **launched(rows),
    )  # fmt: skip
    return out


def tile_of(x: Tensor, weight: Tensor) -> Tile | None:
    """The tile of a product; None: it is cuBLAS's."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if x.dtype not in DTYPES or not 0 < rows <= FEW_ROWS or not x.is_contiguous():
        return None
    tiles = _TILES if rows > 16 else _TILES + _NARROW
    fits = (t for least, t in tiles if triton.cdiv(outputs, t.outputs) >= least)
    return next((tile for tile in fits if inputs % tile.inputs == 0), None)


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr, w_ptr, bias_ptr, out_ptr, rows, outputs, inputs: tl.constexpr, height: tl.constexpr,
    width: tl.constexpr, depth: tl.constexpr, matrix_first: tl.constexpr, has_bias: tl.constexpr,
    gated: tl.constexpr, stages: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    parts: tl.constexpr = 2 if gated else 1
    first = tl.program_id(0).to(tl.int64) * width
    of_tile = tl.arange(0, parts * width)
    n = first + of_tile % width
    m, k = tl.arange(0, height), tl.arange(0, depth)
    is_row, is_output = m < rows, n < outputs
    channel = of_tile // width * outputs + n
    acc = tl.zeros([parts * width, height] if matrix_first else [height, parts * width], tl.float32)
    for at in tl.range(0, inputs, depth, num_stages=stages):
        x = tl.load(x_ptr + m[:, None] * inputs + at + k[None, :], mask=is_row[:, None], other=0.0)
        w = tl.load(
            w_ptr + channel[:, None] * inputs + at + k[None, :], mask=is_output[:, None], other=0.0
        )
        acc = tl.dot(w, tl.trans(x), acc) if matrix_first else tl.dot(x, tl.trans(w), acc)
    if matrix_first:
        acc = tl.trans(acc)
    n = first + tl.arange(0, width)
    if has_bias:
        acc += tl.load(bias_ptr + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    made = acc.to(out_ptr.dtype.element_ty)
    if gated:
        halves = tl.permute(tl.reshape(made, [height, 2, width]), (0, 2, 1))
        gate, up = tl.split(halves)
        made = silu(gate, up)
    place = out_ptr + m[:, None] * outputs + n[None, :]
    tl.store(place, made, mask=is_row[:, None] & (n < outputs)[None, :])
