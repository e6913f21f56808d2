"""When the requests of an open loop arrive."""

from __future__ import annotations

import numpy as np

STREAM = 2  # keeps these random numbers apart from those of the prompts


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """When `count` requests arrive, in seconds since the start, at `rate` a second; equal for equal
    arguments.

    As in vLLM's serving benchmark: gaps are gamma distributed with shape `burstiness` and scale
    1 / (rate x burstiness), so 1 is a Poisson process, less is burstier, more is more even. Then
    all are stretched so that the last request arrives at count / rate.
    """
    if count == 0:
        return []
    random = np.random.default_rng((seed, STREAM))
    arrivals = np.cumsum(random.gamma(burstiness, 1.0 / (rate * burstiness), count))
    return [float(at) for at in arrivals * (count / rate / arrivals[-1])]
