"""Attention over pages, in Triton. Shapes and dtypes are those of `Attention`.

See `fused` for the names of arguments. A decode step cuts contexts in parts where there are few.
The program that ends last joins them, where they are few. A kernel that is launched early has the
first pages of its part while it waits: only the new token is of the kernel before.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels import reference
from workers.engines.native.kernels.early import in_turn, launched
from workers.engines.native.kernels.tiles import pages_ahead, pages_behind, parts_of

_LOG2_E = 1.4426950408889634  # scores are powers of 2 inside, which the GPU has an instruction for
_FEW_PARTS = 4
_STAGES = {1: 3, 2: 5}  # of Triton, by pages on their way: their numbers are on their way before
_COUNTED = 1 << 16  # requests times KV heads whose parts are counted


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    window: int | None,
    plans: reference.Plans | None = None,
) -> Tensor:
    """Split-KV decoding: every (request, KV head) is shared by several programs. Pages before the
    window are not read."""
    batch, heads, dim = q.shape
    page, kv_heads = keys.shape[1], keys.shape[2]
    group, pages = heads // kv_heads, tables.shape[1]
    read = pages if window is None else min(pages, triton.cdiv(window, page) + 1)
    contexts = batch * kv_heads
    parts, ahead = parts_of(contexts, read), pages_ahead(batch, keys.shape, keys.element_size())
    joins = parts <= _FEW_PARTS and contexts <= _COUNTED
    out = torch.empty_like(q)
    made = torch.empty(batch, heads, parts, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(batch, heads, parts, dtype=torch.float32, device=q.device)
    tensors = (q, keys, values, tables, lengths, made, sums, _counts(q.device), out)
    rows = max(16, triton.next_power_of_2(group))
    sizes = (kv_heads, group, rows, dim, page, parts, ahead, joins, window or 0)
    grid, scale = (batch, kv_heads, parts), dim**-0.5 * _LOG2_E
    behind = pages_behind(contexts * parts, ahead, 2 * page * dim * keys.element_size())
    ways = {"num_warps": 4 if ahead else 2, "num_stages": _STAGES[behind], **launched(batch)}
    _decode[grid](*tensors, scale, pages, *sizes, **ways)
    if parts > 1 and not joins:
        block = triton.next_power_of_2(parts)
        joined, warps = (made, sums, out, parts, block, dim), max(2, block // 16)
        _join[(batch, heads)](*joined, num_warps=warps, **launched(batch))
    return out


@cache
def _counts(device: torch.device) -> Tensor:
    """How many parts of each request and KV head are done: none, between two kernels."""
    return torch.zeros(_COUNTED, dtype=torch.int32, device=device)


@triton.jit
def _decode(
    q_ptr, keys_ptr, values_ptr, tables_ptr, lengths_ptr, made_ptr, sums_ptr, counts_ptr, out_ptr,
    scale, pages, kv_heads: tl.constexpr, group: tl.constexpr, rows: tl.constexpr,
    dim: tl.constexpr, page: tl.constexpr, parts: tl.constexpr, ahead: tl.constexpr,
    joins: tl.constexpr, window: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    request, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    # Contexts, as in `fused._rope`: they are older than this step, all but the newest token.
    length, table = tl.load(lengths_ptr + request), tables_ptr + request * pages
    oldest = tl.maximum(length - window, 0) if window else 0  # the first token that is seen
    begin, end = oldest // page, tl.cdiv(length, page)
    count = tl.cdiv(end - begin, parts)
    first, last = begin + part * count, tl.minimum(begin + (part + 1) * count, end)
    newest = tl.load(table + end - 1).to(tl.int64) * page + (length - 1) % page
    if ahead:
        tokens = first * page + tl.arange(0, ahead * page)
        mine = tokens < last * page
        slots = tl.load(table + tokens // page, mask=mine, other=0).to(tl.int64) * page
        at = _place(slots + tokens % page, kv_head, kv_heads, dim)
        k_ahead = tl.load(keys_ptr + at, mask=mine[:, None], other=0.0)
        v_ahead = tl.load(values_ptr + at, mask=mine[:, None], other=0.0)
    in_turn(early)
    r, d, t = tl.arange(0, rows), tl.arange(0, dim), tl.arange(0, page)
    pair = request * kv_heads + kv_head
    head, real = pair * group + r, r < group
    q = tl.load(q_ptr + head[:, None] * dim + d[None, :], mask=real[:, None], other=0.0)
    q, newest = _beside(q, keys_ptr), (newest * kv_heads + kv_head) * dim + d
    apart: tl.constexpr = early or ahead > 0  # the newest token, from those of its page
    is_mine, old_end = apart & (first < last) & (last == end), length - apart
    top, total, acc = _begun(q, keys_ptr + newest, values_ptr + newest, is_mine, scale, apart)
    if ahead:
        old = mine & (tokens < old_end) & (tokens >= oldest)
        top, total, acc = _with(q, k_ahead, v_ahead, old, scale, top, total, acc)
    for i in range(first + ahead, last):
        place = _place(tl.load(table + i).to(tl.int64) * page + t, kv_head, kv_heads, dim)
        k, v = tl.load(keys_ptr + place), tl.load(values_ptr + place)
        seen = (i * page + t < old_end) & (i * page + t >= oldest)
        top, total, acc = _with(q, k, v, seen, scale, top, total, acc)
    to = (made_ptr, sums_ptr, counts_ptr + pair, out_ptr)
    _store(top, total, acc, to, head, real, part, parts, joins)


@triton.jit
def _place(slots, kv_head, kv_heads: tl.constexpr, dim: tl.constexpr):
    """Where the keys and values of a head are in the slots [n] -> [n, dim]."""
    return (slots * kv_heads + kv_head)[:, None] * dim + tl.arange(0, dim)[None, :]


@triton.jit
def _begun(q, key_ptr, value_ptr, is_mine, scale, apart: tl.constexpr):
    """Where the newest token alone is seen, if it is of this part: the largest score, the sum of
    all weights, which are powers of 2 of scores less that one, and of values times them."""
    top = tl.full([q.shape[0]], -1e30, tl.float32)
    total, acc = tl.zeros_like(top), tl.zeros(q.shape, tl.float32)
    if apart:
        k, v = tl.load(key_ptr).to(tl.float32), tl.load(value_ptr).to(tl.float32)
        score = tl.sum(q.to(tl.float32) * k[None, :], 1) * scale
        top = tl.where(is_mine, score, top)
        total += is_mine.to(tl.float32)
        acc += tl.where(is_mine, v, 0.0)[None, :]
    return top, total, acc


@triton.jit
def _with(q, k, v, seen, scale, top, total, acc):
    """The same with the tokens of k and v that are `seen`."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    score = tl.where(seen[None, :], score, -1e30)
    higher = tl.maximum(top, tl.max(score, 1))
    weight = tl.exp2(score - higher[:, None])
    fade = tl.exp2(top - higher)
    acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return higher, total * fade + tl.sum(weight, 1), acc


@triton.jit
def _store(top, total, acc, to, head, real, part, parts: tl.constexpr, joins: tl.constexpr):
    """What this part has seen; or, of the part that ends last, what all of them have."""
    made_ptr, sums_ptr, count_ptr, out_ptr = to
    dim: tl.constexpr = acc.shape[1]
    seen_ptr = out_ptr + head[:, None] * dim + tl.arange(0, dim)[None, :]
    if parts == 1:
        out = acc / total[:, None]
        tl.store(seen_ptr, out.to(out_ptr.dtype.element_ty), mask=real[:, None])
    else:
        safe, mine = tl.where(total > 0.0, total, 1.0), head * parts + part
        made = made_ptr + mine[:, None] * dim + tl.arange(0, dim)[None, :]
        tl.store(made, acc / safe[:, None], mask=real[:, None])
        share = tl.where(total > 0.0, top + tl.log2(safe), -1e30)
        tl.store(sums_ptr + mine, share, mask=real)
        if joins:
            tl.debug_barrier()  # all threads have stored theirs
            if tl.atomic_add(count_ptr, 1, sem="acq_rel") == parts - 1:
                tl.store(count_ptr, 0)
                out = _joined(made_ptr, sums_ptr, head, real, parts, dim)
                tl.store(seen_ptr, out.to(out_ptr.dtype.element_ty), mask=real[:, None])


@triton.jit
def _joined(made_ptr, sums_ptr, head, real, parts: tl.constexpr, dim: tl.constexpr):
    """Of all parts of the heads `head`. Others have made them, so what this multiprocessor may have
    cached is not read."""
    d, top = tl.arange(0, dim), tl.full(head.shape, -1e30, tl.float32)
    for p in tl.static_range(parts):
        share = tl.load(sums_ptr + head * parts + p, real, -1e30, cache_modifier=".cg")
        top = tl.maximum(top, share)
    total = tl.zeros(head.shape, tl.float32)
    acc = tl.zeros([head.shape[0], dim], tl.float32)
    for p in tl.static_range(parts):
        share = tl.load(sums_ptr + head * parts + p, real, -1e30, cache_modifier=".cg")
        made = made_ptr + (head * parts + p)[:, None] * dim + d[None, :]
        made = tl.load(made, real[:, None], 0.0, cache_modifier=".cg")
        acc += made * tl.exp2(share - top)[:, None]
        total += tl.exp2(share - top)
    return acc / total[:, None]


@triton.jit
def _beside(q, keys_ptr):
    """q in the dtype in which it and a cache are multiplied: beside e4m3 not bfloat16 but float16,
    which holds all of e4m3 and takes two of them in one instruction."""
    if keys_ptr.dtype.element_ty == tl.float8e4nv and q.dtype == tl.bfloat16:
        q = q.to(tl.float16)
    return q


@triton.jit
def _join(
    made_ptr, sums_ptr, out_ptr, parts: tl.constexpr, block: tl.constexpr, dim: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    s, d = tl.arange(0, block), tl.arange(0, dim)
    inside = s < parts
    share = tl.load(sums_ptr + row * parts + s, mask=inside, other=-1e30)
    share = tl.exp2(share - tl.max(share, 0))
    share = share / tl.sum(share, 0)
    place = (row * parts + s[:, None]) * dim + d[None, :]
    made = tl.load(made_ptr + place, mask=inside[:, None], other=0.0)
    tl.store(out_ptr + row * dim + d, tl.sum(made * share[:, None], 0).to(out_ptr.dtype.element_ty))


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
