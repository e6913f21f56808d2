"""The kernels in plain torch: what every other one is checked against. Those for each token by
itself run without fusion, and on a CPU.

Shapes and dtypes are those of the protocols in `kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """One request after another."""
    page = keys.shape[1]
    outputs = []
    for i, length in enumerate(lengths.tolist()):
        pages = tables[i, : -(-length // page)].long()
        k, v = (cache[pages].flatten(0, 1)[:length] for cache in (keys, values))
        outputs.append(_attend(q[i : i + 1], k, v, window))
    return torch.cat(outputs)


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
