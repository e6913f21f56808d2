"""Attention by FlashAttention-3 (Shah et al., arXiv:2407.08608), prebuilt for Hopper: the operators
of the package `flash_attn_3`. Shapes and dtypes are those of `kernels.Attention`.

How a decode step is shared out over the GPU is worked out by the GPU itself, so that a graph serves
any lengths and the host waits for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.engines.native.kernels.reference import Plans, gathered, narrowed

# Parts into which the context of a request is cut, at most: room for their results is taken ahead.
_SPLITS = 32
_BLOCK = 128  # tokens of a context that are read together; a part has at least so many


def load() -> None:
    """Bring the operators. Raises RuntimeError where that cannot be."""
    try:
        import flash_attn_3._C  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"--attention fa3 cannot be: {error}; pip install 'shard-orchestrator[fa3]' on every "
            "node, or use --attention triton"
        ) from error


def parts(tokens: int) -> int:
    """Into how many parts a context of so many tokens can be cut."""
    return max(1, min(_SPLITS, -(-tokens // _BLOCK)))


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    window: int | None,
    plans: Plans | None = None,
) -> Tensor:
    """Over pages. With a cache in FP8 queries and probabilities are e4m3 of scale 1 too."""
    plans = {} if plans is None else plans
    x = narrowed(q, keys.dtype)
    if window not in plans:
        plans[window] = _plan(x, keys, tables, lengths, window)
    out: Tensor = torch.ops.flash_attn_3.fwd(
        x[:, None],
        keys,
        values,
        page_table=tables,
        seqused_k=lengths,
        scheduler_metadata=plans[window],
        num_splits=parts(tables.shape[1] * keys.shape[1]),
        **_seen(window),
    )[0]
    return out[:, 0].to(q.dtype)


def _plan(q: Tensor, keys: Tensor, tables: Tensor, lengths: Tensor, window: int | None) -> Tensor:
    """How the contexts are cut: [a few numbers a request] int32. All layers that see as much of the
    same contexts can have it."""
    (batch, heads, dim), (page, kv_heads) = q.shape, keys.shape[1:3]
    longest = tables.shape[1] * page
    plan: Tensor = torch.ops.flash_attn_3.get_scheduler_metadata(
        batch,
        1,
        longest,
        heads,
        kv_heads,
        dim,
        dim,
        q.dtype,
        lengths,
        page_size=page,
        num_splits=parts(longest),
        **_seen(window),
    )
    return plan


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
    """Over variable lengths. The contexts are gathered from their pages first: what lies together
    is read by the GPU's copy engine, and pages smaller than a block are not."""
    caches = (keys.flatten(0, 1), values.flatten(0, 1))
    k, v = (gathered(cache, slot_mapping, q.dtype) for cache in caches)
    out: Tensor = torch.ops.flash_attn_3.fwd(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        num_splits=1,
        **_seen(window),
    )[0]
    return out


def _seen(window: int | None) -> dict[str, Any]:
    """What a query sees: its own token, and as many before it as the window has left."""
    return {"is_causal": True, "window_size_left": -1 if window is None else window - 1}
