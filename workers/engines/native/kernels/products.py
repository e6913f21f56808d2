"""Products of few rows by a matrix, in Triton, for Hopper: how fast weights are read is all that
counts. `tiles` says which are in the kernel here, which in `streamed`; cuBLAS does the others.

The matrix comes first: a tile of its rows is what the tensor cores take as their larger operand, 64
or 128 rows, and the tokens are the columns. So few tokens do not leave them idle, and weights go
from shared memory straight into them. `early` lets such a kernel be placed while the one before it
ends, which cuBLAS's are not.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import FEW_ROWS, in_turn, launched
from workers.engines.native.kernels.reference import Outbox, Rope
from workers.engines.native.kernels.tiles import Tile, height_of, tile_of

try:
    from workers.engines.native.kernels import streamed
except ImportError as why:  # Gluon is experimental: other releases may have it in other places
    if not str(why.name).startswith("triton."):
        raise
    STREAMS = False
else:
    STREAMS = True

DTYPES = (torch.bfloat16, torch.float16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, summed in float32 and rounded once. x: [T, K], weight: [N, K], bias: [N]
    -> [T, N]."""
    tile = chosen(x, weight)
    if tile is None:
        return F.linear(x, weight, bias)
    if tile.streamed:
        return streamed.linear(streamed.Product(x, weight, bias, x.dtype), tile)
    rows, (outputs, inputs) = x.shape[0], weight.shape
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    tensors = (x, weight, out if bias is None else bias, out)
    sizes = (rows, outputs, inputs, height_of(rows))
    _linear[(triton.cdiv(outputs, tile.outputs),)](
        *tensors, *sizes, tile.outputs, tile.inputs, tile.matrix_first, bias is not None,
        tile.stages, num_warps=tile.warps, **launched(rows),
    )  # fmt: skip
    return out


def gated(x: Tensor, weight: Tensor) -> Tensor | None:
    """See `Products`."""
    tile = chosen(x, weight)
    if tile is None or not tile.pairs(weight.shape[0]):
        return None
    return streamed.gated(streamed.Product(x, weight, None, x.dtype), tile)[0]


def queries(x: Tensor, weight: Tensor, bias: Tensor | None, rope: Rope) -> Tensor | None:
    """See `Products`."""
    tile = chosen(x, weight)
    if tile is None or rope.q_norm is not None or not tile.pairs(rope.keys.shape[3]):
        return None
    return streamed.queries(streamed.Product(x, weight, bias, x.dtype), tile, rope)


def handed(x: Tensor, weight: Tensor, to: Outbox) -> bool:
    """See `Products`."""
    tile = chosen(x, weight)
    if tile is None or not tile.streamed:
        return False
    streamed.handed(streamed.Product(x, weight, None, x.dtype), tile, to)
    return True


def chosen(x: Tensor, weight: Tensor) -> Tile | None:
    """The tile of a product; None: it is cuBLAS's."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    plain = x.is_contiguous() and weight.is_contiguous()
    if x.dtype not in DTYPES or not 0 < rows <= FEW_ROWS or not plain:
        return None
    return tile_of(rows, outputs, inputs, streams(x, weight))


def streams(x: Tensor, weight: Tensor) -> bool:
    """Whether `streamed` is there, and both begin where TMA can read them."""
    return STREAMS and (x.data_ptr() | weight.data_ptr()) % 16 == 0


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
