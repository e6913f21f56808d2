"""Attention over contexts that are gathered from their pages first, in plain torch.

Nothing here waits for the device in a decode step, so that graphs can hold it. Shapes and dtypes
are those of `kernels.Attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.engines.native.kernels.reference import Plans, gathered

# Bytes of keys that a CPU looks at together: what they are copied to stays in its cache.
AT_ONCE = 1 << 20
# (q [B, KV heads, R, D], k and v [B, KV heads, L, D], what is seen: bool, [B, 1, 1, L] or
# [1, 1, R, L]) -> [B, KV heads, R, D]. The rows R of a KV head are its queries, of all its heads.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Dense:
    """Both kernels of attention. attend: how one batch of contexts is attended to."""

    attend: Attend

    def decode_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        tables: Tensor,
        lengths: Tensor,
        window: int | None,
        plans: Plans | None = None,
    ) -> Tensor:
        """All contexts together, each as long as the tables can hold, as a graph serves any length.
        On a CPU some at a time, each as long as the longest of them."""
        if q.device.type != "cpu":
            return self._decode(q, keys, values, tables, lengths, window)
        page, token = keys.shape[1], keys[0, 0].numel() * q.element_size()
        count = max(1, AT_ONCE // (int(lengths.max()) * token))
        parts = []
        for begin in range(0, len(q), count):
            some = slice(begin, begin + count)
            pages = tables[some, : -(-int(lengths[some].max()) // page)]
            parts.append(self._decode(q[some], keys, values, pages, lengths[some], window))
        return torch.cat(parts)

    def _decode(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        tables: Tensor,
        lengths: Tensor,
        window: int | None,
    ) -> Tensor:
        kv_heads, dim = keys.shape[2:]
        pages = (gathered(cache, tables.long(), q.dtype) for cache in (keys, values))
        k, v = (one.flatten(1, 2).transpose(1, 2) for one in pages)
        places, ends = torch.arange(k.shape[2], device=q.device), lengths[:, None]
        seen = places < ends
        if window is not None:
            seen &= places >= ends - window
        rows = q.view(q.shape[0], kv_heads, -1, dim)
        return self.attend(rows, k, v, seen[:, None, None]).reshape(q.shape)

    def prefill_attention(
        self,
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
        new, contexts = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        parts = (torch.split(q, new), torch.split(k, contexts), torch.split(v, contexts))
        return torch.cat([self._chunk(*one, window) for one in zip(*parts, strict=True)])

    def _chunk(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Causal attention of a context's newest tokens. q: [new, heads, D]; k, v: [length, KV
        heads, D]."""
        (new, heads, dim), (length, kv_heads, _) = q.shape, k.shape
        seen = torch.ones(new, length, dtype=torch.bool, device=q.device).tril(length - new)
        if window is not None:
            seen = seen.triu(length - new - window + 1)
        group = heads // kv_heads
        rows = q.transpose(0, 1).reshape(1, kv_heads, group * new, dim)
        k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k, v))
        out = self.attend(rows, k, v, seen.repeat(group, 1)[None, None])
        return out.reshape(heads, new, dim).transpose(0, 1)


def _eager(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Scores as a matrix, their softmax in float32, and the sum of the values: three passes over
    memory, as Transformers' "eager" attention."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen, float("-inf"))
    out: Tensor = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


EAGER, SDPA = Dense(_eager), Dense(_sdpa)
