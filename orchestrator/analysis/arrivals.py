"""Open loops: how requests arrived, and how long they waited to be let in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from workers.rows import column, row


@row
class Arrivals:
    """Requests of an open loop; null in a closed one, whose requests wait for a seat of theirs."""

    request_rate: float | None = column(
        "requests that arrive a second", "requests/s", over_runs="first"
    )
    burstiness: float | None = column(
        "shape of the gamma distributed gaps between them; 1 is a Poisson process",
        "1",
        source="vLLM, benchmarks/benchmark_serving.py",
        over_runs="first",
    )
    mean_schedule_delay_ms: float | None = column(
        "from a request's scheduled arrival to being let in, mean: the client's own queue, for a "
        "seat, for KV, for the step under way",
        "ms",
        over_runs="median",
    )
    median_schedule_delay_ms: float | None = column("the same, median", "ms", over_runs="median")
    p99_schedule_delay_ms: float | None = column(
        "the same, 99th percentile", "ms", over_runs="median"
    )


def arrivals_of(
    requests: pa.Table, request_rate: float | None, burstiness: float | None
) -> Arrivals:
    """How requests arrived and were let in. requests: table REQUESTS."""
    known = requests.filter(requests.column("admitted_s").is_valid())
    admitted, arrived = (np.asarray(known.column(name)) for name in ("admitted_s", "arrival_s"))
    delays = 1e3 * (admitted - arrived)
    return Arrivals(
        request_rate=request_rate,
        burstiness=burstiness,
        mean_schedule_delay_ms=float(delays.mean()) if delays.size else None,
        median_schedule_delay_ms=float(np.median(delays)) if delays.size else None,
        p99_schedule_delay_ms=float(np.percentile(delays, 99)) if delays.size else None,
    )
