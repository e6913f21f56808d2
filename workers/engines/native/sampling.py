"""Greedy and temperature sampling over vocabulary shards; full logits are never gathered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.communicator import Communicator
from workers.engines.native.kernels import Ends, ends
from workers.messages import BROKEN
from workers.weights import uniform


@dataclass(frozen=True, slots=True)
class Sampler:
    """Sampling from one rank's rows of the vocabulary.

    first: the token of the shard's first row. axis: the mesh axis over which the vocabulary is cut,
    None where it is whole. temperature: 0 is greedy. The noise depends on seed, request, position
    and token alone, so that every layout draws the same tokens. checks: whether a row of logits
    that are not all finite is told. ends: the kernels of the greatest logit.
    """

    communicator: Communicator
    first: int
    axis: str | None
    temperature: float
    seed: int
    checks: bool = True
    ends: Ends = ends

    def __call__(self, logits: Tensor, requests: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """One token a row. logits: [n, shard]; requests, positions: [r] int64, of which the tokens
        have those at rows: [n] int64 -> [n] int64.
        BROKEN stands for a row that holds a value that is not finite, on any shard.

        Adding Gumbel noise and taking the maximum draws from the softmax (Gumbel-max trick), and a
        maximum over shards is the maximum of their maxima.
        """
        scores = logits
        if self.temperature > 0:
            noise = self._gumbel(requests[rows], positions[rows], logits.shape[1])
            scores = logits.float() / self.temperature + noise
        mine = self.ends.likeliest(scores, self.first, self.checks)
        every = mine[None] if self.axis is None else self.communicator.all_gather(mine, self.axis)
        return self.ends.chosen(every, BROKEN if self.checks else None)

    def _gumbel(self, requests: Tensor, positions: Tensor, width: int) -> Tensor:
        key = (requests * 1_000_003 + positions) * 69_069 + self.seed
        token = torch.arange(self.first, self.first + width, device=key.device)
        noise = uniform(token[None, :], (uniform(key, self.seed) * 2**24).long()[:, None])
        return -torch.log(-torch.log(noise.clamp(min=1e-7, max=1 - 1e-7)))
