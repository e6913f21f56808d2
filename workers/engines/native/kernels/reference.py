"""Plain torch: what every Triton kernel is checked against, and what runs on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) x weight over the last dim, in float32 inside (Zhang and Sennrich,
    arXiv:1910.07467). x: [T, H]."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x in place, then its norm. x, residual: [T, H]."""
    residual += x
    return rms_norm(residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) x up. gate_up: [T, 2I], the gate first -> [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


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
    """Norm (Qwen3) and rotate queries and keys, write keys and values into the cache; returns
    queries [T, heads, D].

    qkv: [T, (heads + 2 KV heads) x D]. cos, sin: [positions, D / 2] float32. positions, slots: [T]
    int64; a slot is page x page size + offset. keys, values: [pages, page size, KV heads, D].
    """
    kv_heads, dim = keys.shape[2:]
    q, k, v = qkv.view(qkv.shape[0], -1, dim).split(
        [qkv.shape[1] // dim - 2 * kv_heads, kv_heads, kv_heads], dim=1
    )
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    angles = cos[positions].unsqueeze(1).to(q.dtype), sin[positions].unsqueeze(1).to(q.dtype)
    keys.view(-1, kv_heads, dim)[slots] = _rotate(k, *angles)
    values.view(-1, kv_heads, dim)[slots] = v
    return _rotate(q, *angles)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor
) -> Tensor:
    """Attention of one new token a request over its paged context. q: [B, heads, D] -> the same
    shape.

    keys, values: [pages, page size, KV heads, D]. tables: [B, pages] int32, a request's pages in
    order.
    lengths: [B] int32, context tokens, the new one included.
    """
    page = keys.shape[1]
    rows = []
    for i, length in enumerate(lengths.tolist()):
        pages = tables[i, : -(-length // page)].long()
        k, v = (cache[pages].flatten(0, 1)[:length] for cache in (keys, values))
        rows.append(_attend(q[i : i + 1], k, v))
    return torch.cat(rows)


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
    """Causal attention of chunks of prompts over their paged contexts. q: [T, heads, D] -> the same
    shape.

    Chunk i is queries query_ends[i] to query_ends[i + 1], the last of its context_ends[i + 1] -
    context_ends[i] tokens.
    keys, values: [pages, page size, KV heads, D]; slots: [sum of contexts] int64, where their
    tokens lie in it.
    query_ends, context_ends: [chunks + 1] int32.
    """
    k, v = (cache.flatten(0, 1)[slots] for cache in (keys, values))
    starts, stops = query_ends.tolist(), context_ends.tolist()
    parts = [
        _attend(q[a:b], k[c:d], v[c:d])
        for a, b, c, d in zip(starts[:-1], starts[1:], stops[:-1], stops[1:], strict=True)
    ]
    return torch.cat(parts)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one request's newest tokens over its context. q: [new, heads, D]; k, v:
    [length, KV heads, D]."""
    new, length = q.shape[0], k.shape[0]
    mask = (
        torch.ones(new, length, dtype=torch.bool, device=q.device).tril(length - new)
        if new > 1
        else None
    )
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return (
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        .squeeze(0)
        .transpose(0, 1)
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split form of Hugging Face's Llama (Su et al.,
    arXiv:2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
