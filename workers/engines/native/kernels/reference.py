"""The kernels in plain torch: what every other one is checked against. Those for each token by
itself run without fusion, and on a CPU.

Shapes and dtypes are those of the protocols in `kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FP8, LARGEST = torch.float8_e4m3fn, 448.0
# What attention has worked out for the contexts of a decode step, by window: the layers share it.
Plans = dict[int | None, Tensor]
_VALUES = torch.arange(256, dtype=torch.uint8).view(FP8).float()


class Rope(NamedTuple):
    """What `Pointwise.rope_and_cache` does with a product of queries, keys and values."""

    cos: Tensor
    sin: Tensor
    positions: Tensor
    slot_mapping: Tensor
    keys: Tensor
    values: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float


class Outbox(NamedTuple):
    """Where a product puts this rank's part of a sum over `ranks`: into memory of all of them. See
    `symmetric`. places: int64 [ranks], where that of each begins. calls: int32 [rows], how many
    there have been of each row."""

    places: Tensor
    calls: Tensor
    rank: int
    ranks: int


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) x weight, in float32 inside."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x in place, then its norm."""
    residual += x
    return rms_norm(residual, weight, eps)


def summed(parts: Tensor) -> Tensor:
    """The sum of what each rank of a group has, in float32 and rounded once. parts: [ranks, *shape
    of a message] -> [*shape of a message]."""
    return parts.float().sum(0).to(parts.dtype)


def summed_norm(parts: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += that sum in place, then its norm."""
    return add_rms_norm(summed(parts), residual, weight, eps)


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
    for cache, new in ((keys, _rotate(k, *angles)), (values, v)):
        slots = _movable(cache).view(-1, kv_heads, dim)
        slots[slot_mapping] = _movable(narrowed(new, cache.dtype))
    return _rotate(q, *angles)


def gated(x: Tensor, weight: Tensor) -> None:
    """Not made with the product."""


def queries(x: Tensor, weight: Tensor, bias: Tensor | None, rope: Rope) -> None:
    """Not made with the product."""


def handed(x: Tensor, weight: Tensor, to: Outbox) -> bool:
    """Not by the product."""
    return False


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    window: int | None,
    plans: Plans | None = None,
) -> Tensor:
    """One request after another."""
    page = keys.shape[1]
    outputs = []
    for i, length in enumerate(lengths.tolist()):
        pages = tables[i, : -(-length // page)].long()
        read = (gathered(cache, pages, q.dtype) for cache in (keys, values))
        k, v = (one.flatten(0, 1)[:length] for one in read)
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
    caches = (keys.flatten(0, 1), values.flatten(0, 1))
    k, v = (gathered(cache, slot_mapping, q.dtype) for cache in caches)
    queries, contexts = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = [
        _attend(q[a:b], k[c:d], v[c:d], window)
        for a, b, c, d in zip(queries[:-1], queries[1:], contexts[:-1], contexts[1:], strict=True)
    ]
    return torch.cat(parts)


def gathered(cache: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """cache[index] of keys or values, in `dtype`."""
    found = _movable(cache)[index].view(cache.dtype)
    return widened(found, dtype) if cache.dtype == FP8 else found


def widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 in `dtype`. A CPU looks it up, five times as fast as it converts."""
    if x.device.type != "cpu":
        return x.to(dtype)
    places = x.view(torch.uint8).flatten().int()
    return _VALUES.index_select(0, places).view(x.shape).to(dtype)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`; cut off at the ends of e4m3, which has no infinity."""
    return x.clamp(-LARGEST, LARGEST).to(dtype) if dtype == FP8 else x.to(dtype)


def _movable(x: Tensor) -> Tensor:
    """The same bytes in a dtype that every release of torch can gather and scatter."""
    return x.view(torch.uint8) if x.dtype == FP8 else x


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
