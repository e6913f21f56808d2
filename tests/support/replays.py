"""What a CUDA graph makes, replayed over and over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engines.node_timing import captured


def replayed(made: Callable[[], Tensor], times: int = 20) -> Tensor:
    """What `made` returns, in its graph, after so many replays."""
    results: list[Tensor] = []
    replay = captured(torch.device("cuda"), lambda: results.append(made()))
    for _ in range(times):
        replay()
    result = results[-1].clone()
    torch.cuda.synchronize()  # before the graph and its memory are gone
    return result
