"""What is before the first layer of a step and behind its last one, in plain torch: which tokens a
decode step takes and where they go, their embeddings, and the likeliest token of a row of logits.

Shapes and dtypes are those of the protocol `Ends` in `kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def begun(
    rows: Tensor, token: Tensor, position: Tensor, tables: Tensor, page: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gathers, and a scatter for the next step."""
    at, pages = position[rows], tables[rows]
    last = pages.gather(1, (at // page)[:, None])[:, 0].long()
    position[rows] = at + (rows < position.shape[0] - 1)
    return token[rows], at, last * page + at % page, pages, (at + 1).int()


def embedded(tokens: Tensor, table: Tensor, first: int) -> Tensor:
    """A lookup, and zeros in place of what lies elsewhere."""
    local = tokens - first
    mine = (local >= 0) & (local < table.shape[0])
    return F.embedding(local.where(mine, 0), table) * mine[:, None]


def likeliest(logits: Tensor, first: int, checks: bool) -> Tensor:
    """The maximum of each row."""
    best, token = logits.float().max(dim=-1)
    if checks:
        # Nothing but NaN comes of 0 x a sum with a NaN or an infinity in it.
        best = torch.add(best, logits.sum(dim=-1, dtype=torch.float32), alpha=0)
    return torch.stack((best, (token + first).float()), dim=-1)


def chosen(candidates: Tensor, broken: int | None) -> Tensor:
    """The first of the maxima; NaN is the maximum of whatever it is compared with."""
    best, winner = candidates[..., 0].max(dim=0, keepdim=True)
    token = candidates[..., 1].gather(0, winner)[0].long()
    return token if broken is None else token.masked_fill(best[0].isnan(), broken)
