"""What the new tokens of a step attend to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from workers.engines.native.kernels import Attention
from workers.engines.native.kernels.reference import Plans
from workers.engines.native.pages import PAGE
from workers.records import DECODE, PREFILL


class Context(Protocol):
    """What new tokens attend to. phase: "prefill" or "decode"."""

    phase: ClassVar[str]

    def attend(
        self, kernels: Attention, q: Tensor, keys: Tensor, values: Tensor, window: int | None
    ) -> Tensor:
        """q: [T, heads, D]; keys, values: one layer's cache; window: the newest tokens of a context
        that are seen, None for all -> [T, heads, D]."""
        ...


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """One new token a request; see `Attention.decode_attention` for the fields. One context is of
    one step."""

    phase: ClassVar[str] = DECODE
    tables: Tensor
    lengths: Tensor
    plans: Plans = field(default_factory=dict)

    def attend(
        self, kernels: Attention, q: Tensor, keys: Tensor, values: Tensor, window: int | None
    ) -> Tensor:
        """Attention over each request's pages."""
        contexts = (self.tables, self.lengths, window, self.plans)
        return kernels.decode_attention(q, keys, values, *contexts)


@dataclass(frozen=True, slots=True)
class PrefillContext:
    """Chunks of prompts; see `Attention.prefill_attention` for the fields."""

    phase: ClassVar[str] = PREFILL
    slot_mapping: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    def attend(
        self, kernels: Attention, q: Tensor, keys: Tensor, values: Tensor, window: int | None
    ) -> Tensor:
        """Attention of each chunk over its prompt so far."""
        return kernels.prefill_attention(
            q,
            keys,
            values,
            self.slot_mapping,
            self.cu_seqlens_q,
            self.cu_seqlens_k,
            self.max_seqlen_q,
            self.max_seqlen_k,
            window,
        )


def prefill_context(
    counts: np.ndarray, slots: Sequence[np.ndarray], upload: Callable[[np.ndarray], Tensor]
) -> PrefillContext:
    """That of chunks of prompts. counts: tokens of each chunk. slots: those of the whole context of
    each. upload: an array as a tensor of the device."""
    lengths = np.array([len(of_chunk) for of_chunk in slots])
    return PrefillContext(
        slot_mapping=upload(np.concatenate(slots)),
        cu_seqlens_q=upload(_cumulated(counts)),
        cu_seqlens_k=upload(_cumulated(lengths)),
        max_seqlen_q=int(counts.max()),
        max_seqlen_k=int(lengths.max()),
    )


def slots_of(pages: list[int]) -> np.ndarray:
    """Every slot of these pages, in order: [pages x PAGE] int64."""
    return (np.array(pages, dtype=np.int64)[:, None] * PAGE + np.arange(PAGE)).ravel()


def _cumulated(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
