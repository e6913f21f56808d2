"""Open loops: when requests arrive, and how long they waited to be let in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from workers.records import column

FIELDS = (
    column("request_rate", pa.float64(), "requests/s"),
    column("burstiness", pa.float64(), "1"),
    column("mean_schedule_delay_ms", pa.float64(), "ms"),
    column("median_schedule_delay_ms", pa.float64(), "ms"),
    column("p99_schedule_delay_ms", pa.float64(), "ms"),
)
STREAM = 2  # tells these numbers from those of the prompts


def times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """When `count` requests arrive, in seconds since the start, at `rate` a second; equal for equal
    arguments.

    As vLLM's serving benchmark has it: gaps are gamma distributed with shape `burstiness` and scale
    1 / (rate x burstiness), so 1 is a Poisson process, less is burstier, more is more even; then
    all are stretched so that the last arrives at count / rate.
    """
    gaps = np.random.default_rng((seed, STREAM)).gamma(burstiness, 1.0 / (rate * burstiness), count)
    arrivals = np.cumsum(gaps)
    return [float(at) for at in arrivals * (count / rate / arrivals[-1])] if count else []


def of_requests(requests: pa.Table) -> dict[str, Any]:
    """mean_, median_ and p99_schedule_delay_ms: from the scheduled arrival to being let in; nothing
    for a closed loop.

    requests: in the schema REQUESTS. The delay is the client's own queue: for a slot, for KV, for
    the step under way.
    """
    rows = requests.select(["arrival_s", "admitted_s"]).to_pylist()
    delays = np.array(
        [row["admitted_s"] - row["arrival_s"] for row in rows if row["admitted_s"] is not None]
    )
    if not delays.size:
        return {}
    return {
        "mean_schedule_delay_ms": float(1e3 * delays.mean()),
        "median_schedule_delay_ms": float(1e3 * np.median(delays)),
        "p99_schedule_delay_ms": float(1e3 * np.percentile(delays, 99)),
    }
