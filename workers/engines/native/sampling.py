"""Greedy and temperature sampling over vocabulary shards; full logits are never gathered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.communicator import Communicator
from workers.messages import BROKEN
from workers.weights import uniform


@dataclass(frozen=True, slots=True)
class Sampler:
    """Sampling from one rank's rows of the vocabulary.

    first: the token of the shard's first row. axis: the mesh axis over which the vocabulary is cut,
    None where it is whole. temperature: 0 is greedy. The noise depends on seed, request, position
    and token alone, so that every layout draws the same tokens. checks: whether a row of logits
    that are not all finite is told.
    """

    communicator: Communicator
    first: int
    axis: str | None
    temperature: float
    seed: int
    checks: bool = True

    def __call__(self, logits: Tensor, requests: Tensor, positions: Tensor) -> Tensor:
        """One token a row. logits: [n, shard]; requests, positions: [n] int64 -> [n] int64.
        BROKEN stands for a row that holds a value that is not finite, on any shard.

        Adding Gumbel noise and taking the maximum draws from the softmax (Gumbel-max trick), and a
        maximum over shards is the maximum of their maxima.
        """
        scores = logits.float()
        if self.temperature > 0:
            scores = scores / self.temperature + self._gumbel(requests, positions, logits.shape[1])
        best, token = scores.max(dim=-1)
        token = token + self.first
        if self.checks:
            # Nothing but NaN comes of 0 x a sum with a NaN or an infinity in it, and NaN is the
            # maximum of whatever it is compared with.
            best = torch.add(best, logits.sum(dim=-1, dtype=torch.float32), alpha=0)
        if self.axis is None:
            return self._told(best, token)
        # A float32 holds every integer below 2^24 exactly; vocabularies are smaller.
        candidates = self.communicator.all_gather(
            torch.stack((best, token.float()), dim=-1), self.axis
        )
        best, winner = candidates[..., 0].max(dim=0, keepdim=True)
        return self._told(best[0], candidates[..., 1].gather(0, winner)[0].long())

    def _told(self, best: Tensor, token: Tensor) -> Tensor:
        return token.masked_fill(best.isnan(), BROKEN) if self.checks else token

    def _gumbel(self, requests: Tensor, positions: Tensor, width: int) -> Tensor:
        key = (requests * 1_000_003 + positions) * 69_069 + self.seed
        token = torch.arange(self.first, self.first + width, device=key.device)
        noise = uniform(token[None, :], (uniform(key, self.seed) * 2**24).long()[:, None])
        return -torch.log(-torch.log(noise.clamp(min=1e-7, max=1 - 1e-7)))
