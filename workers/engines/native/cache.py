"""The paged KV cache of one rank: its tensors. Who has which page is in `pages`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.memory import kv_heads
from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers.engines.native.pages import PAGE


@dataclass(frozen=True, slots=True)
class PagedCache:
    """Keys and values of the layers of one rank, by layer index: [pages, PAGE, KV heads, head_dim]
    each.

    pages: those that requests can have. Page 0 comes on top: padding writes there, and no request
    reads it.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    pages: int

    @classmethod
    def allocate(
        cls,
        model: ModelShape,
        placement: Placement,
        rank: int,
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PagedCache:
        """Zeros: page 0 and `pages` more, for every layer of `rank`."""
        shape = (pages + 1, PAGE, kv_heads(placement, model, rank), model.head_dim)
        layers = [layer for stage in placement.stages_of(rank) for layer in stage.layers]
        keys, values = (
            {layer: torch.zeros(shape, dtype=dtype, device=device) for layer in layers}
            for _ in range(2)
        )
        return cls(keys, values, pages)
