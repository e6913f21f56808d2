"""Triton kernels, one for each function of `reference`, with its arguments and its result."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels import reference

# Enough programs to give every multiprocessor of a large GPU two.
_TARGET_PROGRAMS = 264


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    _norm[(x.shape[0],)](
        x, x, weight, out, eps, x.shape[1], triton.next_power_of_2(x.shape[1]), False, num_warps=8
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    _norm[(x.shape[0],)](
        x,
        residual,
        weight,
        out,
        eps,
        x.shape[1],
        triton.next_power_of_2(x.shape[1]),
        True,
        num_warps=8,
    )
    return out


@triton.jit
def _norm(  # type: ignore[no-untyped-def]
    x_ptr, res_ptr, w_ptr, out_ptr, eps, width: tl.constexpr, block: tl.constexpr, add: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, block)
    inside = at < width
    x = tl.load(x_ptr + row + at, mask=inside, other=0.0)
    if add:
        x += tl.load(res_ptr + row + at, mask=inside, other=0.0)
        tl.store(res_ptr + row + at, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    weight = tl.load(w_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + row + at, (wide * scale).to(x.dtype) * weight, mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(rows, triton.cdiv(width, 1024))](gate_up, out, width, 1024)
    return out


@triton.jit
def _silu_mul(x_ptr, out_ptr, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    gate = tl.load(x_ptr + row * 2 * width + at, mask=inside).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + at, mask=inside)
    tl.store(out_ptr + row * width + at, (gate * tl.sigmoid(gate)).to(up.dtype) * up, mask=inside)


def rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    kv_heads, dim = keys.shape[2:]
    rows, heads = qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads
    out = torch.empty(rows, heads, dim, dtype=qkv.dtype, device=qkv.device)
    weights = (q_norm, k_norm) if q_norm is not None and k_norm is not None else (qkv, qkv)
    _rope[(rows, heads + 2 * kv_heads)](
        qkv,
        cos,
        sin,
        positions,
        slots,
        keys,
        values,
        out,
        *weights,
        eps,
        heads,
        kv_heads,
        dim // 2,
        triton.next_power_of_2(dim // 2),
        q_norm is not None,
        num_warps=1,
    )
    return out


@triton.jit
def _rope(  # type: ignore[no-untyped-def]
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    pos_ptr,
    slot_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    qw_ptr,
    kw_ptr,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
    norm: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, block)
    inside = at < half
    source = qkv_ptr + (row * (heads + 2 * kv_heads) + head) * 2 * half + at
    a, b = tl.load(source, mask=inside, other=0.0), tl.load(source + half, mask=inside, other=0.0)
    slot = tl.load(slot_ptr + row)
    if head >= heads + kv_heads:
        target = v_ptr + (slot * kv_heads + head - heads - kv_heads) * 2 * half + at
        tl.store(target, a, mask=inside)
        tl.store(target + half, b, mask=inside)
        return
    if norm:
        weight = qw_ptr
        if head >= heads:
            weight = kw_ptr
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        scale = tl.rsqrt(
            (tl.sum(wide_a * wide_a, 0) + tl.sum(wide_b * wide_b, 0)) / (2 * half) + eps
        )
        a = (wide_a * scale).to(a.dtype) * tl.load(weight + at, mask=inside)
        b = (wide_b * scale).to(b.dtype) * tl.load(weight + half + at, mask=inside)
    position = tl.load(pos_ptr + row)
    cos = tl.load(cos_ptr + position * half + at, mask=inside)
    sin = tl.load(sin_ptr + position * half + at, mask=inside)
    wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
    first, second = (
        (wide_a * cos - wide_b * sin).to(a.dtype),
        (wide_b * cos + wide_a * sin).to(a.dtype),
    )
    target = out_ptr + (row * heads + head) * 2 * half + at
    if head >= heads:
        target = k_ptr + (slot * kv_heads + head - heads) * 2 * half + at
    tl.store(target, first, mask=inside)
    tl.store(target + half, second, mask=inside)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor
) -> Tensor:
    """Split-KV decoding: every (request, KV head) is shared by several programs whose parts are
    then joined."""
    batch, heads, dim = q.shape
    page, kv_heads = keys.shape[1], keys.shape[2]
    group, pages = heads // kv_heads, tables.shape[1]
    splits = max(1, min(triton.cdiv(_TARGET_PROGRAMS, batch * kv_heads), triton.cdiv(pages, 2), 16))
    out = torch.empty_like(q)
    parts = torch.empty(batch, heads, splits, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    rows = max(16, triton.next_power_of_2(group))
    _decode[(batch, kv_heads, splits)](
        q,
        keys,
        values,
        tables,
        lengths,
        parts,
        sums,
        out,
        dim**-0.5 * 1.4426950408889634,
        pages,
        kv_heads,
        group,
        rows,
        dim,
        page,
        splits,
        num_warps=4,
        num_stages=3,
    )
    if splits > 1:
        _join[(batch, heads)](
            parts, sums, out, splits, triton.next_power_of_2(splits), dim, num_warps=2
        )
    return out


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    length_ptr,
    part_ptr,
    sum_ptr,
    out_ptr,
    scale,
    pages,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    dim: tl.constexpr,
    page: tl.constexpr,
    splits: tl.constexpr,
):
    request, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(length_ptr + request)
    count = tl.cdiv(tl.cdiv(length, page), splits)
    r, d, t = tl.arange(0, rows), tl.arange(0, dim), tl.arange(0, page)
    head = kv_head * group + r
    real = r < group
    q = tl.load(
        q_ptr + (request * kv_heads * group + head[:, None]) * dim + d[None, :],
        mask=real[:, None],
        other=0.0,
    )
    best = tl.full([rows], -1e30, tl.float32)
    total = tl.zeros([rows], tl.float32)
    acc = tl.zeros([rows, dim], tl.float32)
    last = tl.minimum((split + 1) * count, tl.cdiv(length, page))
    for i in range(split * count, last):
        base = (
            tl.load(table_ptr + request * pages + i).to(tl.int64) * page * kv_heads + kv_head
        ) * dim
        place = base + t[:, None] * kv_heads * dim + d[None, :]
        k = tl.load(k_ptr + place)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where((i * page + t)[None, :] < length, score, -1e30)
        top = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - top[:, None])
        fade = tl.exp2(best - top)
        v = tl.load(v_ptr + place)
        acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(weight, 1)
        best = top
    if splits == 1:
        place = (request * kv_heads * group + head[:, None]) * dim + d[None, :]
        tl.store(out_ptr + place, (acc / total[:, None]).to(q.dtype), mask=real[:, None])
    else:
        at = (request * kv_heads * group + head) * splits + split
        safe = tl.where(total > 0.0, total, 1.0)
        tl.store(part_ptr + at[:, None] * dim + d[None, :], acc / safe[:, None], mask=real[:, None])
        tl.store(sum_ptr + at, tl.where(total > 0.0, best + tl.log2(safe), -1e30), mask=real)


@triton.jit
def _join(part_ptr, sum_ptr, out_ptr, splits: tl.constexpr, block: tl.constexpr, dim: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    s, d = tl.arange(0, block), tl.arange(0, dim)
    inside = s < splits
    share = tl.load(sum_ptr + row * splits + s, mask=inside, other=-1e30)
    share = tl.exp2(share - tl.max(share, 0))
    share = share / tl.sum(share, 0)
    part = tl.load(
        part_ptr + (row * splits + s[:, None]) * dim + d[None, :], mask=inside[:, None], other=0.0
    )
    tl.store(out_ptr + row * dim + d, tl.sum(part * share[:, None], 0).to(out_ptr.dtype.element_ty))


def prefill_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    query_ends: Tensor,
    context_ends: Tensor,
    longest_query: int,
    longest_context: int,
) -> Tensor:
    """FlashAttention over variable lengths; the contexts are gathered from their pages first."""
    if q.dtype == torch.float32:
        return reference.prefill_attention(
            q, keys, values, slots, query_ends, context_ends, longest_query, longest_context
        )
    k, v = (cache.flatten(0, 1)[slots] for cache in (keys, values))
    # Straight to the operator: its public form, `varlen_attn`, has changed its arguments between
    # torch 2.11 and 2.13.
    return torch.ops.aten._flash_attention_forward(
        q, k, v, query_ends, context_ends, longest_query, longest_context, 0.0, True, False
    )[0]
