"""Attention of decode steps by FlashInfer (Ye et al., arXiv:2501.01005): its kernel XQA, which is
TensorRT-LLM's and reads tables and lengths on the GPU. `nvcc` compiles it for the heads of a model
when it is first called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engines.native.kernels.reference import Plans

# Room for what parts of contexts come to: a GPU has fewer of them than multiprocessors.
SCRATCH_BYTES = 32 << 20
COUNTERS = 1 << 16  # of the parts that are done: one a request and KV head


class FlashInfer:
    """Decodes by the library. Shapes and dtypes are those of `kernels.Attention`.

    prefill_attention: what attends to prompts. Raises RuntimeError where the library cannot be
    imported.
    """

    def __init__(self, prefill_attention: Callable[..., Tensor], device: str = "cuda") -> None:
        try:
            from flashinfer.xqa import xqa
        except ImportError as error:
            raise RuntimeError(
                f"--attention flashinfer cannot be: {error}; pip install "
                "'shard-orchestrator[flashinfer]' on every node, or use --attention triton"
            ) from error
        self._xqa = xqa
        self.prefill_attention = prefill_attention
        # A kernel leaves its counters at zero.
        self._counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        self._scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=device)

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
        """Over pages. With a cache in FP8 it computes in FP8."""
        out = torch.empty_like(q)
        self._xqa(
            q[:, None],
            keys,
            values,
            tables,
            lengths.view(torch.uint32)[:, None],
            out[:, None],
            self._scratch,
            self._counters.view(torch.uint32),
            num_kv_heads=keys.shape[2],
            page_size=keys.shape[1],
            sliding_win_size=window or 0,
        )
        return out
