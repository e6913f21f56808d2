"""Text as equal sequences of tokens, and which of them an optimizer step trains on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Packed:
    """tokens: int32 [sequences, seq_len + 1], each with the label of its last token. seed: of the
    order in which they are trained on."""

    tokens: NDArray[np.int32]
    seed: int

    def batch(
        self, step: int, global_batch_size: int, replica: int = 0, replicas: int = 1
    ) -> NDArray[np.int64]:
        """[sequences of the replica, seq_len + 1] of an optimizer step, counted from 0.

        Steps take the sequences one after another, each epoch in an order of its own, so that a
        step depends on nothing before it; replicas take neighbouring ones. replicas divides the
        batch.
        """
        share = global_batch_size // replicas
        first = step * global_batch_size + replica * share
        return self.tokens[[self._place(i) for i in range(first, first + share)]].astype(np.int64)

    def _place(self, number: int) -> int:
        """Which sequence is trained on as the one of this number."""
        epoch, at = divmod(number, len(self.tokens))
        return int(_order(len(self.tokens), self.seed, epoch)[at])


@lru_cache(maxsize=2)  # a batch can reach into the next epoch
def _order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(size)
