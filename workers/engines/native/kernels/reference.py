"""The kernels in plain torch: what every Triton kernel is checked against, and what runs on a CPU.

Shapes and dtypes are those of `kernels.Kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 1 << 20  # bytes of keys that a decode step looks at together


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) x weight, in float32 inside."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x in place, then its norm."""
    residual += x
    return rms_norm(residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) x up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


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
    """Rotate, fill the cache, return the queries."""
    kv_heads, dim = keys.shape[2:]
    heads = qkv.view(qkv.shape[0], -1, dim)
    q, k, v = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads : -kv_heads], heads[:, -kv_heads:]
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    angles = cos[positions].unsqueeze(1).to(q.dtype), sin[positions].unsqueeze(1).to(q.dtype)
    keys.view(-1, kv_heads, dim)[slot_mapping] = _rotate(k, *angles)
    values.view(-1, kv_heads, dim)[slot_mapping] = v
    return _rotate(q, *angles)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, window: int | None
) -> Tensor:
    """Some requests at a time: few enough that what they read of the cache fits into a cache of the
    CPU, as it is copied to be in one piece."""
    kv_heads, dim = keys.shape[2:]
    together = max(1, AT_ONCE // (int(lengths.max()) * kv_heads * dim * keys.element_size()))
    # The heads of a group see the same keys, as queries of one request do.
    q = q.view(len(q), kv_heads, -1, dim)
    outputs = [
        _attend_paged(q[some], tables[some], lengths[some], keys, values, window)
        for some in (slice(i, i + together) for i in range(0, len(q), together))
    ]
    return torch.cat(outputs).flatten(1, 2)


def _attend_paged(
    q: Tensor, tables: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, window: int | None
) -> Tensor:
    """q: [some requests, KV heads, heads of a group, D] -> the same shape."""
    longest, page = int(lengths.max()), keys.shape[1]
    at = torch.arange(longest, device=q.device)
    seen = at < lengths[:, None]
    if window is not None:
        seen &= at >= lengths[:, None] - window
    pages = tables[:, : -(-longest // page)]
    k, v = (x[pages].flatten(1, 2)[:, :longest].transpose(1, 2) for x in (keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])


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
    """One chunk after another; the longest lengths are not needed here."""
    k, v = (cache.flatten(0, 1)[slot_mapping] for cache in (keys, values))
    queries, contexts = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = [
        _attend(q[a:b], k[c:d], v[c:d], window)
        for a, b, c, d in zip(queries[:-1], queries[1:], contexts[:-1], contexts[1:], strict=True)
    ]
    return torch.cat(parts)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention of one request's newest tokens over its context. q: [new, heads, D]; k, v:
    [length, KV heads, D]."""
    new, length = q.shape[0], k.shape[0]
    mask = None
    if new > 1 or window is not None:
        seen = torch.ones(new, length, dtype=torch.bool, device=q.device).tril(length - new)
        mask = seen if window is None else seen.triu(length - new - window + 1)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split form of Hugging Face's Llama."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
