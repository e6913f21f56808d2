"""What is done with each token by itself, in Triton. Shapes and dtypes are those of `Pointwise`.

A name that ends in `_ptr` is a pointer to the tensor of that name; those marked `tl.constexpr` are
compiled in.
"""
# Triton's decorator has no types, and pointers have none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import at_once, in_turn, launched


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One program a token."""
    return _normed(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same, reading and writing the residual in the same pass."""
    return _normed(x, residual, weight, eps)


def _normed(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    out, width = torch.empty_like(x), x.shape[1]
    tensors = (x, x if residual is None else residual, weight, out)
    sizes = (width, triton.next_power_of_2(width))
    adds = residual is not None
    _norm[(x.shape[0],)](*tensors, eps, *sizes, adds, num_warps=8, **launched(x.shape[0]))
    return out


@triton.jit
def _norm(
    x_ptr, res_ptr, w_ptr, out_ptr, eps, width: tl.constexpr, block: tl.constexpr,
    add: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    at_once(early)
    row, at = tl.program_id(0).to(tl.int64) * width, tl.arange(0, block)
    out = normed(x_ptr, res_ptr, w_ptr, row, eps, width, block, add)
    tl.store(out_ptr + row + at, out, mask=at < width)


@triton.jit
def normed(
    x_ptr, res_ptr, w_ptr, row, eps, width: tl.constexpr, block: tl.constexpr, add: tl.constexpr
):
    """[block], of the token that begins at element `row`; zero beyond `width`."""
    at = tl.arange(0, block)
    inside = at < width
    x = tl.load(x_ptr + row + at, mask=inside, other=0.0)
    if add:
        x += tl.load(res_ptr + row + at, mask=inside, other=0.0)
        tl.store(res_ptr + row + at, x, mask=inside)
    return scaled(x, tl.load(w_ptr + at, mask=inside, other=0.0), width, eps)


@triton.jit
def scaled(x, weight, width: tl.constexpr, eps):
    """x / rms(x) x weight, of the first `width` elements of `x`; the others are zero."""
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    return (wide * scale).to(x.dtype) * weight


def silu_mul(gate_up: Tensor) -> Tensor:
    """One program for 1024 columns of a token."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(rows, triton.cdiv(width, 1024))](gate_up, out, width, 1024, **launched(rows))
    return out


@triton.jit
def _silu_mul(x_ptr, out_ptr, width, block: tl.constexpr, early: tl.constexpr):
    at_once(early)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    out = silu_of(x_ptr + row * 2 * width, at, width)
    tl.store(out_ptr + row * width + at, out, mask=at < width)


@triton.jit
def silu_of(gate_ptr, at, width):
    """silu(gate) x up at the columns `at` of a token, zero beyond `width`."""
    inside = at < width
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0)
    up = tl.load(gate_ptr + width + at, mask=inside, other=0.0)
    return silu_times(gate, up)


@triton.jit
def silu_times(gate, up):
    wide = gate.to(tl.float32)
    return (wide * tl.sigmoid(wide)).to(up.dtype) * up


@triton.jit
def narrowed(x, like):
    """x in the dtype of the pointer `like`; cut off at the ends of e4m3, which has no infinity."""
    if like.dtype.element_ty == tl.float8e4nv:
        x = tl.clamp(x.to(tl.float32), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(like.dtype.element_ty)


def rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """One program for a head of a token, those of keys and values included."""
    kv_heads, dim = keys.shape[2:]
    rows, heads = qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads
    out = torch.empty(rows, heads, dim, dtype=qkv.dtype, device=qkv.device)
    weights = (q_norm, k_norm) if q_norm is not None and k_norm is not None else (qkv, qkv)
    tensors = (qkv, cos, sin, positions, slot_mapping, keys, values, out, *weights)
    sizes = (heads, kv_heads, dim // 2, triton.next_power_of_2(dim // 2))
    grid = (rows, heads + 2 * kv_heads)
    _rope[grid](*tensors, eps, *sizes, q_norm is not None, num_warps=1, **launched(rows))
    return out


@triton.jit
def _rope(
    qkv_ptr, cos_ptr, sin_ptr, positions_ptr, slot_mapping_ptr, keys_ptr, values_ptr, out_ptr,
    q_norm_ptr, k_norm_ptr, eps, heads: tl.constexpr, kv_heads: tl.constexpr, half: tl.constexpr,
    block: tl.constexpr, norm: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, block)
    inside = at < half
    # Contexts, which kernels wrote that have ended: a norm and a product are in between (`early`).
    slot, position = tl.load(slot_mapping_ptr + row), tl.load(positions_ptr + row)
    cos = tl.load(cos_ptr + position * half + at, mask=inside)
    sin = tl.load(sin_ptr + position * half + at, mask=inside)
    in_turn(early)
    source = qkv_ptr + (row * (heads + 2 * kv_heads) + head) * 2 * half + at
    a, b = tl.load(source, mask=inside, other=0.0), tl.load(source + half, mask=inside, other=0.0)
    if head >= heads + kv_heads:
        cached = values_ptr + (slot * kv_heads + head - heads - kv_heads) * 2 * half + at
        tl.store(cached, narrowed(a, values_ptr), mask=inside)
        tl.store(cached + half, narrowed(b, values_ptr), mask=inside)
        return
    if norm:
        weight = q_norm_ptr
        if head >= heads:
            weight = k_norm_ptr
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        squares = tl.sum(wide_a * wide_a, 0) + tl.sum(wide_b * wide_b, 0)
        scale = tl.rsqrt(squares / (2 * half) + eps)
        a = (wide_a * scale).to(a.dtype) * tl.load(weight + at, mask=inside)
        b = (wide_b * scale).to(b.dtype) * tl.load(weight + half + at, mask=inside)
    wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
    first = (wide_a * cos - wide_b * sin).to(a.dtype)
    second = (wide_b * cos + wide_a * sin).to(a.dtype)
    if head >= heads:
        cached = keys_ptr + (slot * kv_heads + head - heads) * 2 * half + at
        tl.store(cached, narrowed(first, keys_ptr), mask=inside)
        tl.store(cached + half, narrowed(second, keys_ptr), mask=inside)
    else:
        target = out_ptr + (row * heads + head) * 2 * half + at
        tl.store(target, first, mask=inside)
        tl.store(target + half, second, mask=inside)
