"""The small kernels of a decoder step: those for each token by itself, and those of attention.

`reference` has both in plain torch, which runs anywhere; `fused` and `paged` have them in Triton,
for a GPU. `dense` has attention over gathered contexts, in the two ways that torch offers; `fa3`
and `flashinfer` have that of libraries. `fp8` and `fused_fp8` are the first kind for matrices in
FP8. `ends` and `fused_ends` are what is before the layers and behind them. `products` multiplies
few rows by a matrix, in `streamed` with what follows where `paired` can; `early` is how the kernels
in Triton are launched, `compiling` how they are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from workers.engines.native.kernels.fp8 import Fp8Kernels
from workers.engines.native.kernels.reference import Plans


class Pointwise(Protocol):
    """What is done with each token by itself.

    T: new tokens of the step. H: hidden size. D: size of a head. Activations and weights have the
    model's dtype, and so have caches, or they are e4m3 of scale 1. keys, values: the cache of one
    layer, [pages, page size, KV heads, D] each. A slot is a token's place in it: page x page size +
    place in the page.
    """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) x weight over the last dim, in float32 inside (Zhang and Sennrich,
        arXiv:1910.07467). x: [T, H], weight: [H] -> [T, H]."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x, in place, then its norm. x, residual: [T, H] -> [T, H]."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) x up. gate_up: [T, 2 I], the gate first -> [T, I]."""
        ...

    def rope_and_cache(
        self,
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
        """Rotate queries and keys (Su et al., arXiv:2104.09864), write keys and values into the
        cache, and return the queries [T, heads, D].

        qkv: [T, (heads + 2 KV heads) x D]. cos, sin: [longest sequence, D / 2] float32. positions:
        [T] int64, places in the sequences. slot_mapping: [T] int64, the slots that are written.
        q_norm, k_norm: [D], weights of the norms before the rotation (Qwen3); both or neither.
        """
        ...


class Ends(Protocol):
    """What is before the first layer of a step and behind its last one. B: requests."""

    def begun(
        self, rows: Tensor, token: Tensor, position: Tensor, tables: Tensor, page: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a decode step takes of the state of its requests, whose positions go on by one.

        rows: [B] int64, rows of the others, which have a last one for padding, and that stays:
        token, position: [rows] int64. tables: [rows, most pages] int32. page: slots of one. Returns
        tokens [B] int64, positions [B] int64, slots [B] int64, tables [B, most pages] int32, and
        tokens of each context, the new one included, [B] int32.
        """
        ...

    def embedded(self, tokens: Tensor, table: Tensor, first: int) -> Tensor:
        """Rows of a shard of the embedding, zero for tokens that are not in it. tokens: [T] int64.
        table: [shard, H], from the token `first` on -> [T, H]."""
        ...

    def likeliest(self, logits: Tensor, first: int, checks: bool) -> Tensor:
        """The greatest logit of each row, and its token, the first of several. logits: [B, shard],
        from the token `first` on -> [B, 2] float32, which holds every integer below 2^24. checks:
        NaN stands for the logit of a row that holds a value that is not finite."""
        ...

    def chosen(self, candidates: Tensor, broken: int | None) -> Tensor:
        """The token of the greatest logit over all shards, the first of several. candidates:
        [shards, B, 2], as `likeliest` makes them -> [B] int64. broken: stands for a row of
        which one logit is NaN, None where that is not asked."""
        ...


class Attention(Protocol):
    """What makes tokens see each other. Shapes and dtypes are those of `Pointwise`."""

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
        """Attention of one new token a request over its paged context. q: [B, heads, D] -> the same
        shape.

        tables: [B, most pages] int32, the pages of a request in order. lengths: [B] int32, tokens
        of its context, the new one included. window: only the newest tokens of a context are seen,
        at most so many (at least 1); None: all. plans: the same for all layers of a step, and empty
        before the first, for what they can share; None: nothing is shared.
        """
        ...

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
        """Causal attention of chunks of prompts over their paged contexts. q: [T, heads, D] -> the
        same shape.

        Chunk i is queries cu_seqlens_q[i] to cu_seqlens_q[i + 1]. Its context, of which its queries
        are the last tokens, lies in the slots slot_mapping[cu_seqlens_k[i]:cu_seqlens_k[i + 1]].
        slot_mapping: [sum of the contexts' lengths] int64. cu_seqlens_q, cu_seqlens_k: [chunks + 1]
        int32. max_seqlen_q, max_seqlen_k: the longest chunk and the longest context. window: a
        query at position p sees the tokens p - window + 1 to p; None: all up to p.
        """
        ...


@dataclass(frozen=True, slots=True)
class ByPhase:
    """`Attention` of two kinds, each for the phase that it is faster in."""

    decode_attention: Callable[..., Tensor]
    prefill_attention: Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Products:
    """Products of [T, K] by a matrix [N, K].

    linear: x weight^T + bias, of x, weight and bias [N] or None -> [T, N]. gated: of x and weight,
    `Pointwise.silu_mul` of their product -> [T, N / 2]. queries: of x, weight, bias and a `Rope`,
    `Pointwise.rope_and_cache` of their product. Where it is not made with the product, both are
    None. handed: whether the product of x and weight puts itself into an `Outbox`.
    """

    linear: Callable[..., Tensor]
    gated: Callable[..., Tensor | None]
    queries: Callable[..., Tensor | None]
    handed: Callable[..., bool]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels of one decoder. compiled_together: see `compiling`; None where no kernel is
    compiled, or not all may be left out."""

    pointwise: Pointwise
    products: Products
    fp8: Fp8Kernels
    ends: Ends
    attention: Attention
    compiled_together: Callable[[], AbstractContextManager[None]] | None = None


def kernels_of(
    attention: str, fusion: bool, multiplies: bool = False, early: bool = False
) -> Kernels:
    """The kernels of a decoder. attention: "eager", "sdpa", "triton", "fa3", "fa3-prefill" or
    "flashinfer". fusion: whether operations on a token share a kernel, multiplies: whether products
    of few rows have one, in Triton. early: how those in Triton are launched, see `early`. Raises
    RuntimeError where a library cannot be loaded."""
    from workers.engines.native.kernels import dense, ends, fa3, fp8, reference

    plain = Products(F.linear, reference.gated, reference.queries, reference.handed)
    attends: dict[str, Attention] = {"eager": dense.EAGER, "sdpa": dense.SDPA, "fa3": fa3}
    if attention in ("fa3", "fa3-prefill"):
        fa3.load()
    if attention in attends and not (fusion or multiplies):
        return Kernels(reference, plain, fp8, ends, attends[attention])
    # Importing Triton takes long.
    from workers.engines.native.kernels import fused, fused_ends, fused_fp8, paged, products
    from workers.engines.native.kernels.compiling import compiled_together
    from workers.engines.native.kernels.early import settle

    settle(early)
    attends["triton"] = paged
    attends["fa3-prefill"] = ByPhase(paged.decode_attention, fa3.prefill_attention)
    if attention == "flashinfer":
        from workers.engines.native.kernels.flashinfer import FlashInfer

        attends[attention] = FlashInfer(paged.prefill_attention)
    ends_too = products if multiplies and fusion else reference
    multiply = products.linear if multiplies else F.linear
    is_ours = attends[attention].decode_attention is paged.decode_attention
    return Kernels(
        fused if fusion else reference,
        Products(multiply, ends_too.gated, ends_too.queries, ends_too.handed),
        fused_fp8 if fusion else fp8,
        fused_ends if fusion else ends,
        attends[attention],
        # Any other would be launched with contexts of no tokens.
        compiled_together if is_ours else None,
    )
