"""Products of few rows by a matrix, in Triton, for Hopper: how fast weights are read is all that
counts. cuBLAS does the others.

The matrix comes first: a tile of its rows is what the tensor cores take as their larger operand, 64
or 128 rows, and the tokens are the columns. So few tokens do not leave them idle, and weights go
from shared memory straight into them. `early` lets such a kernel be placed while the one before it
ends, which cuBLAS's are not.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import FEW_ROWS, in_turn, launched

DTYPES = (torch.bfloat16, torch.float16)


class Tile(NamedTuple):
    """What a program has of a matrix at once. matrix_first: the matrix is the larger operand, else
    the tokens are. outputs, inputs: of the tile. stages: tiles on their way."""

    matrix_first: bool
    outputs: int
    inputs: int
    warps: int
    stages: int


_HALF = Tile(True, 64, 128, 4, 6)
# Up to how many rows, and from and up to how many programs, the first that fits. On 132
# multiprocessors (docs/performance.md).
_TILES = (
    (FEW_ROWS, 100, math.inf, Tile(True, 128, 128, 8, 4)),
    (32, 64, math.inf, _HALF),
    (FEW_ROWS, 100, math.inf, _HALF),
    (16, 100, 132, Tile(False, 32, 256, 4, 4)),
    (16, 1, 132, Tile(False, 16, 512, 4, 3)),
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, summed in float32 and rounded once. x: [T, K], weight: [N, K], bias: [N]
    -> [T, N]."""
    tile = tile_of(x, weight)
    if tile is None:
        return F.linear(x, weight, bias)
    rows, (outputs, inputs) = x.shape[0], weight.shape
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    tensors = (x, weight, out if bias is None else bias, out)
    sizes = (rows, outputs, inputs, max(16, triton.next_power_of_2(rows)))
    _linear[(triton.cdiv(outputs, tile.outputs),)](
        *tensors, *sizes, tile.outputs, tile.inputs, tile.matrix_first, bias is not None,
        tile.stages, num_warps=tile.warps, **launched(rows),
    )  # fmt: skip
    return out


def tile_of(x: Tensor, weight: Tensor) -> Tile | None:
    """The tile of a product; None: it is cuBLAS's."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if x.dtype not in DTYPES or not 0 < rows <= FEW_ROWS or not x.is_contiguous():
        return None
    fits = (
        tile
        for height, least, most, tile in _TILES
        if rows <= height and least <= triton.cdiv(outputs, tile.outputs) <= most
    )
    return next((tile for tile in fits if inputs % tile.inputs == 0), None)


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr, w_ptr, bias_ptr, out_ptr, rows, outputs, inputs: tl.constexpr, height: tl.constexpr,
    width: tl.constexpr, depth: tl.constexpr, matrix_first: tl.constexpr, has_bias: tl.constexpr,
    stages: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    n = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    m, k = tl.arange(0, height), tl.arange(0, depth)
    is_row, is_output = m < rows, n < outputs
    acc = tl.zeros([width, height] if matrix_first else [height, width], tl.float32)
    for at in tl.range(0, inputs, depth, num_stages=stages):
        x = tl.load(x_ptr + m[:, None] * inputs + at + k[None, :], mask=is_row[:, None], other=0.0)
        w = tl.load(
            w_ptr + n[:, None] * inputs + at + k[None, :], mask=is_output[:, None], other=0.0
        )
        acc = tl.dot(w, tl.trans(x), acc) if matrix_first else tl.dot(x, tl.trans(w), acc)
    if matrix_first:
        acc = tl.trans(acc)
    if has_bias:
        acc += tl.load(bias_ptr + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    place = out_ptr + m[:, None] * outputs + n[None, :]
    tl.store(place, acc.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
