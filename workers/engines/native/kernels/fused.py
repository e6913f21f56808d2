"""The kernels in Triton, for a GPU. Shapes and dtypes are those of the protocols in `kernels`.

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

from workers.engines.native.kernels import reference
from workers.engines.native.kernels.early import in_turn, launched
from workers.engines.native.kernels.tiles import parts_of

_LOG2_E = 1.4426950408889634  # scores are powers of 2 inside, which the GPU has an instruction for


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
    in_turn(early)
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
    in_turn(early)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    out = gated(x_ptr + row * 2 * width, at, width)
    tl.store(out_ptr + row * width + at, out, mask=at < width)


@triton.jit
def gated(gate_ptr, at, width):
    """silu(gate) x up at the columns `at` of a token, zero beyond `width`."""
    inside = at < width
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width + at, mask=inside, other=0.0)
    return (gate * tl.sigmoid(gate)).to(up.dtype) * up


@triton.jit
def _narrowed(x, like):
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
        tl.store(cached, _narrowed(a, values_ptr), mask=inside)
        tl.store(cached + half, _narrowed(b, values_ptr), mask=inside)
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
        tl.store(cached, _narrowed(first, keys_ptr), mask=inside)
        tl.store(cached + half, _narrowed(second, keys_ptr), mask=inside)
    else:
        target = out_ptr + (row * heads + head) * 2 * half + at
        tl.store(target, first, mask=inside)
        tl.store(target + half, second, mask=inside)


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    window: int | None,
    plans: reference.Plans | None = None,
) -> Tensor:
    """Split-KV decoding: every (request, KV head) is shared by several programs whose parts are
    then joined. Pages before the window are not read."""
    batch, heads, dim = q.shape
    page, kv_heads = keys.shape[1], keys.shape[2]
    group, pages = heads // kv_heads, tables.shape[1]
    read = pages if window is None else min(pages, triton.cdiv(window, page) + 1)
    splits = parts_of(batch * kv_heads, read)
    out = torch.empty_like(q)
    parts = torch.empty(batch, heads, splits, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    tensors = (q, keys, values, tables, lengths, parts, sums, out)
    sizes = (
        kv_heads,
        group,
        max(16, triton.next_power_of_2(group)),
        dim,
        page,
        splits,
        window or 0,
    )
    grid, scale = (batch, kv_heads, splits), dim**-0.5 * _LOG2_E
    _decode[grid](*tensors, scale, pages, *sizes, num_warps=2, num_stages=3, **launched(batch))
    if splits > 1:
        block = triton.next_power_of_2(splits)
        joined, warps = (parts, sums, out, splits, block, dim), max(2, block // 16)
        _join[(batch, heads)](*joined, num_warps=warps, **launched(batch))
    return out


@triton.jit
def _decode(
    q_ptr, keys_ptr, values_ptr, tables_ptr, lengths_ptr, parts_ptr, sums_ptr, out_ptr,
    scale, pages, kv_heads: tl.constexpr, group: tl.constexpr, rows: tl.constexpr,
    dim: tl.constexpr, page: tl.constexpr, splits: tl.constexpr, window: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    request, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + request)  # a context, as in `_rope`
    oldest = tl.maximum(length - window, 0) if window else 0  # the first token that is seen
    begin, end = oldest // page, tl.cdiv(length, page)
    count = tl.cdiv(end - begin, splits)
    in_turn(early)
    r, d, t = tl.arange(0, rows), tl.arange(0, dim), tl.arange(0, page)
    head, real = request * kv_heads * group + kv_head * group + r, (r < group)[:, None]
    q = tl.load(q_ptr + head[:, None] * dim + d[None, :], mask=real, other=0.0)
    q = _beside(q, keys_ptr)
    best = tl.full([rows], -1e30, tl.float32)
    total = tl.zeros([rows], tl.float32)
    acc = tl.zeros([rows, dim], tl.float32)
    for i in range(begin + split * count, tl.minimum(begin + (split + 1) * count, end)):
        at = tl.load(tables_ptr + request * pages + i).to(tl.int64) * page * kv_heads + kv_head
        place = at * dim + t[:, None] * kv_heads * dim + d[None, :]
        k = tl.load(keys_ptr + place).to(q.dtype)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = (i * page + t < length) & (i * page + t >= oldest)
        score = tl.where(seen[None, :], score, -1e30)
        top = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - top[:, None])
        fade, v = tl.exp2(best - top), tl.load(values_ptr + place).to(q.dtype)
        acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(weight, 1)
        best = top
    if splits == 1:
        out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + head[:, None] * dim + d[None, :], out, mask=real)
    else:
        part, safe = head * splits + split, tl.where(total > 0.0, total, 1.0)
        tl.store(parts_ptr + part[:, None] * dim + d[None, :], acc / safe[:, None], mask=real)
        share = tl.where(total > 0.0, best + tl.log2(safe), -1e30)
        tl.store(sums_ptr + part, share, mask=r < group)


@triton.jit
def _beside(q, keys_ptr):
    """q in the dtype in which it and a cache are multiplied: beside e4m3 not bfloat16 but float16,
    which holds all of e4m3 and takes two of them in one instruction."""
    if keys_ptr.dtype.element_ty == tl.float8e4nv and q.dtype == tl.bfloat16:
        q = q.to(tl.float16)
    return q


@triton.jit
def _join(
    parts_ptr, sums_ptr, out_ptr, splits: tl.constexpr, block: tl.constexpr, dim: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    s, d = tl.arange(0, block), tl.arange(0, dim)
    inside = s < splits
    share = tl.load(sums_ptr + row * splits + s, mask=inside, other=-1e30)
    share = tl.exp2(share - tl.max(share, 0))
    share = share / tl.sum(share, 0)
    place = (row * splits + s[:, None]) * dim + d[None, :]
    part = tl.load(parts_ptr + place, mask=inside[:, None], other=0.0)
    tl.store(out_ptr + row * dim + d, tl.sum(part * share[:, None], 0).to(out_ptr.dtype.element_ty))


def prefill_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    slot_mapping: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window: int | None,
) -> Tensor:
    """FlashAttention over variable lengths; the contexts are gathered from their pages first."""
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if q.dtype == torch.float32:
        return reference.prefill_attention(q, keys, values, slot_mapping, *lengths, window)
    caches = (keys.flatten(0, 1), values.flatten(0, 1))
    k, v = (reference.gathered(cache, slot_mapping, q.dtype) for cache in caches)
    # Straight to the operator: its public form, `varlen_attn`, has other arguments in torch 2.13
    # than in 2.11.
    forward = torch.ops.aten._flash_attention_forward
    left = None if window is None else window - 1  # tokens that are seen beside the query's own
    right = None if window is None else 0
    sides = {"window_size_left": left, "window_size_right": right}
    out: Tensor = forward(q, k, v, *lengths, 0.0, True, False, **sides)[0]
    return out
