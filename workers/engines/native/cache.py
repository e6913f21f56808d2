"""The paged KV cache: pages of tokens, handed out whole to requests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.memory import kv_heads
from strategies.placement import Placement
from strategies.shapes import ModelShape

# Tokens a page holds: one tile of the decode kernel.
PAGE = 64


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


class PagePool:
    """The free pages, as numbers. The same sequence of calls gives the same pages on every rank."""

    def __init__(self, pages: int) -> None:
        self._free = deque(range(1, pages + 1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, tokens: int) -> list[int] | None:
        """Pages for `tokens` tokens, or None where too few are free."""
        count = pages_for(tokens)
        return [self._free.popleft() for _ in range(count)] if count <= len(self._free) else None

    def give_back(self, pages: list[int]) -> None:
        """Make pages free again."""
        self._free.extend(pages)


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens of one request take."""
    return -(-tokens // PAGE)
