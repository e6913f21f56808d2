"""The FP8 kernels in Triton, for a GPU. Shapes and dtypes are those of `fp8.Fp8Kernels`.

See `fused` for the names of arguments. A kernel that quantises takes one token a program, for its
largest value is wanted before its first one can be written.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import FEW_ROWS, at_once, in_turn, launched
from workers.engines.native.kernels.fp8 import Fp8, Fp8Weight
from workers.engines.native.kernels.fused import narrowed, normed, silu_of
from workers.engines.native.kernels.products import STREAMS, streams
from workers.engines.native.kernels.reference import FP8, Outbox, Rope
from workers.engines.native.kernels.tiles import FP8_ROWS, Tile, fp8_tile_of

if STREAMS:
    from workers.engines.native.kernels import streamed

# cuBLAS wants both sizes of a matrix in multiples of it.
ALIGNED = 16
# Output channels of a program, and of how many programs at least.
_WIDTHS = ((64, 64), (32, 100))


def quantize(x: Tensor, weight: Fp8Weight) -> Fp8:
    """Reads and writes each value once."""
    out, sizes = room(x, x.shape[1], weight)
    _quantize[(x.shape[0],)](x, *out, *sizes, num_warps=_warps(sizes), **launched(x.shape[0]))
    return Fp8(*out[:2])


def rms_norm(x: Tensor, norm: Tensor, eps: float, weight: Fp8Weight) -> Fp8:
    """One pass."""
    return _normed(x, None, norm, eps, weight)


def add_rms_norm(x: Tensor, residual: Tensor, norm: Tensor, eps: float, weight: Fp8Weight) -> Fp8:
    """The same, reading and writing the residual in the same pass."""
    return _normed(x, residual, norm, eps, weight)


def _normed(x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, weight: Fp8Weight) -> Fp8:
    out, sizes = room(x, x.shape[1], weight)
    tensors = (x, x if residual is None else residual, norm)
    add = residual is not None
    warps = _warps(sizes)
    _norm[(x.shape[0],)](*tensors, *out, eps, *sizes, add, num_warps=warps, **launched(x.shape[0]))
    return Fp8(*out[:2])


def silu_mul(gate_up: Tensor, weight: Fp8Weight) -> Fp8:
    """One pass."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out, sizes = room(gate_up, width, weight)
    _silu_mul[(rows,)](gate_up, *out, *sizes, num_warps=_warps(sizes), **launched(rows))
    return Fp8(*out[:2])


def room(
    x: Tensor, width: int, weight: Fp8Weight
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int, bool]]:
    """What a kernel that quantises a row of `width` for each of `x` writes to, with the stored
    scale that it may read; and the sizes that `stored` takes."""
    columns, rows, device = weight.share[1], x.shape[0], x.device
    values = torch.empty(rows, width, dtype=FP8, device=device)
    scales = torch.empty(rows, triton.cdiv(width, columns), dtype=torch.float32, device=device)
    static = weight.input_scale is not None
    given = scales if weight.input_scale is None else weight.input_scale
    alone = columns >= width  # a token has one scale
    block = triton.next_power_of_2(width)
    return (values, scales, given), (width, block, block if alone else columns, static)


def _warps(sizes: tuple[int, int, int, bool]) -> int:
    return 8 if sizes[1] <= 8192 else 32


@triton.jit
def stored(
    x, out_ptr, scales_ptr, static_ptr, row,
    width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr, static: tl.constexpr,
):  # fmt: skip
    """Quantise a token. x: [block] float32, zero beyond `width`; a scale is of `columns` of it."""
    at, part = tl.arange(0, block), tl.arange(0, block // columns)
    parts = tl.reshape(x, [block // columns, columns])
    if static:
        scale = tl.zeros([block // columns], tl.float32) + tl.load(static_ptr)
    else:
        scale = tl.maximum(tl.max(tl.abs(parts), 1), 1e-10) / 448.0
    count = tl.cdiv(width, columns)
    tl.store(scales_ptr + row * count + part, scale, mask=part < count)
    values = tl.reshape(parts / scale[:, None], [block])
    tl.store(out_ptr + row * width + at, narrowed(values, out_ptr), mask=at < width)


@triton.jit
def _quantize(
    x_ptr, out_ptr, scales_ptr, static_ptr,
    width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr, static: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    at_once(early)
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    x = tl.load(x_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
    stored(x, out_ptr, scales_ptr, static_ptr, row, width, block, columns, static)


@triton.jit
def _norm(
    x_ptr, res_ptr, w_ptr, out_ptr, scales_ptr, static_ptr, eps,
    width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr, static: tl.constexpr,
    add: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    at_once(early)
    row = tl.program_id(0).to(tl.int64)
    x = normed(x_ptr, res_ptr, w_ptr, row * width, eps, width, block, add).to(tl.float32)
    stored(x, out_ptr, scales_ptr, static_ptr, row, width, block, columns, static)


@triton.jit
def _silu_mul(
    x_ptr, out_ptr, scales_ptr, static_ptr,
    width: tl.constexpr, block: tl.constexpr, columns: tl.constexpr, static: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    at_once(early)
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    x = silu_of(x_ptr + row * 2 * width, at, width).to(tl.float32)
    stored(x, out_ptr, scales_ptr, static_ptr, row, width, block, columns, static)


@triton.jit
def _quantize_by(
    x_ptr, largest_ptr, out_ptr, scales_ptr, width, parts: tl.constexpr, many: tl.constexpr,
    block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """As `stored`, by the largest values of all `parts` of a token."""
    at_once(early)
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    x = tl.load(x_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
    p = tl.arange(0, many)
    largest = tl.max(tl.load(largest_ptr + row * parts + p, mask=p < parts, other=0.0), 0)
    scale = tl.maximum(largest, 1e-10) / 448.0
    tl.store(scales_ptr + row, scale)
    tl.store(out_ptr + row * width + at, narrowed(x / scale, out_ptr), mask=at < width)


def linear(x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Of a matrix with a scale a channel, in `streamed` where there is a tile for it, and cuBLAS's
    for many rows; else a kernel of this module.

    `_scaled_mm` with row-wise scales makes bfloat16 alone, and wants the second operand column by
    column, which a matrix [N, K] transposed is.
    """
    rows, (outputs, inputs) = x.values.shape[0], weight.values.shape
    tile = chosen(x, weight)
    if tile is not None:
        return streamed.linear(_streamed(x, weight, bias, dtype), tile)
    by_channel = _by_channel(weight)
    if rows <= FEW_ROWS or not by_channel or outputs % ALIGNED or inputs % ALIGNED:
        return _product(x, weight, bias, dtype)
    second, scales = weight.values.t(), (x.scales, weight.scales.t())
    return torch._scaled_mm(
        x.values, second, *scales, bias=bias, out_dtype=dtype, use_fast_accum=True
    )


def gated(
    x: Fp8, weight: Fp8Weight, dtype: torch.dtype, reads: Fp8Weight | None
) -> Fp8 | Tensor | None:
    """In `streamed`, where there is a tile for it. That finds the largest values of each token, so
    several programs can quantise one."""
    tile = chosen(x, weight)
    if tile is None or not tile.pairs(weight.values.shape[0]):
        return None
    made, largest = streamed.gated(_streamed(x, weight, None, dtype), tile)
    if reads is None:
        return made
    out, (width, *_, static) = room(made, made.shape[1], reads)
    if static or out[1].shape[1] > 1:
        return quantize(made, reads)
    rows, parts = largest.shape
    sizes = (width, parts, triton.next_power_of_2(parts), 1024)
    grid = (rows, triton.cdiv(width, 1024))
    _quantize_by[grid](made, largest, *out[:2], *sizes, **launched(rows))
    return Fp8(*out[:2])


def queries(
    x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype, rope: Rope
) -> Tensor | None:
    """In `streamed`, where there is a tile for it."""
    tile = chosen(x, weight)
    if tile is None or rope.q_norm is not None or not tile.pairs(rope.keys.shape[3]):
        return None
    return streamed.queries(_streamed(x, weight, bias, dtype), tile, rope)


def handed(x: Fp8, weight: Fp8Weight, dtype: torch.dtype, to: Outbox) -> bool:
    """In `streamed`, where there is a tile for it."""
    tile = chosen(x, weight)
    if tile is None:
        return False
    streamed.handed(_streamed(x, weight, None, dtype), tile, to)
    return True


def _streamed(
    x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype
) -> streamed.Product:
    scales = (x.scales, weight.scales)
    return streamed.Product(x.values, weight.values, bias, dtype, scales)


def _by_channel(weight: Fp8Weight) -> bool:
    """Whether each channel has one scale."""
    return weight.scales.shape[1] == weight.share[0] == 1


def chosen(x: Fp8, weight: Fp8Weight) -> Tile | None:
    """The tile by which `streamed` multiplies; None: something else does."""
    rows, (outputs, inputs) = x.values.shape[0], weight.values.shape
    if not 0 < rows <= FP8_ROWS or not _by_channel(weight):
        return None
    is_hopper = _generation(x.values.device) == 9
    return fp8_tile_of(rows, outputs, inputs, is_hopper and streams(x.values, weight.values))


@cache
def _generation(device: torch.device) -> int:
    """The first number of its compute capability."""
    return torch.cuda.get_device_capability(device)[0]


def _product(x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """One program for some rows and some output channels, of which it has few where there would
    else be fewer programs than multiprocessors that can read weights."""
    rows, (outputs, inputs) = x.values.shape[0], weight.values.shape
    out = torch.empty(rows, outputs, dtype=dtype, device=x.values.device)
    blocks = weight.share[1] < inputs or weight.share[0] > 1
    height = min(max(triton.next_power_of_2(rows), 16), 64)
    fits = (n for n, least in _WIDTHS if triton.cdiv(outputs, n) >= least)
    width = 128 if rows > FEW_ROWS else next(fits, 16)
    # Hopper and B200 have 200 KB of shared memory for a program; others have 99.
    deep = _generation(x.values.device) in (9, 10)
    deepest = 256 if deep or width < 64 else 128
    depth = weight.share[1] if blocks else deepest
    more = deep and width == 64 and not blocks
    stages = 6 if more else 4  # tiles on their way
    sizes = (height, width, depth, blocks, bias is not None, inputs % depth == 0)
    ways = {"num_warps": 8 if width == 128 else 4, "num_stages": stages, **launched(rows)}
    tensors = (x.values, x.scales, weight.values, weight.scales)
    grid = (triton.cdiv(outputs, width), triton.cdiv(rows, height))
    _linear[grid](
        *tensors, out if bias is None else bias, out, rows, outputs, inputs,
        x.scales.shape[1], weight.share[0], *sizes, **ways,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr, x_scales_ptr, w_ptr, w_scales_ptr, bias_ptr, out_ptr, rows, outputs, inputs,
    parts, share: tl.constexpr, height: tl.constexpr, width: tl.constexpr, depth: tl.constexpr,
    blocks: tl.constexpr, has_bias: tl.constexpr, even: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The matrix comes first, as in `products`. blocks: each `depth` inputs of a token and of
    `share` channels have a scale of their own, and `parts` is how many there are; else tokens and
    channels have one each."""
    in_turn(early)
    n = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    m = tl.program_id(1).to(tl.int64) * height + tl.arange(0, height)
    is_row, is_output = m < rows, n < outputs
    acc = tl.zeros([width, height], tl.float32)
    for part in range(tl.cdiv(inputs, depth)):
        k = part * depth + tl.arange(0, depth)
        x_mask, w_mask = is_row[:, None], is_output[:, None]
        if not even:
            x_mask, w_mask = x_mask & (k < inputs)[None, :], w_mask & (k < inputs)[None, :]
        x = tl.load(x_ptr + m[:, None] * inputs + k[None, :], mask=x_mask, other=0.0)
        w = tl.load(w_ptr + n[:, None] * inputs + k[None, :], mask=w_mask, other=0.0)
        product = tl.dot(w, tl.trans(x))
        if blocks:
            of_x = tl.load(x_scales_ptr + m * parts + part, mask=is_row, other=0.0)
            of_w = tl.load(w_scales_ptr + n // share * parts + part, mask=is_output, other=0.0)
            product = product * of_w[:, None] * of_x[None, :]
        acc += product
    if not blocks:
        of_x = tl.load(x_scales_ptr + m, mask=is_row, other=0.0)
        acc = acc * tl.load(w_scales_ptr + n, mask=is_output, other=0.0)[:, None] * of_x[None, :]
    out = tl.trans(acc).to(out_ptr.dtype.element_ty)
    if has_bias:
        out += tl.load(bias_ptr + n, mask=is_output, other=0.0)[None, :]
    place = out_ptr + m[:, None] * outputs + n[None, :]
    tl.store(place, out, mask=is_row[:, None] & is_output[None, :])
