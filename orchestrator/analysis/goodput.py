"""Goodput: requests per second that meet every service level asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from orchestrator.analysis.latency import SOURCE, TokenTimes
from workers.rows import column, nothing, row


@row
class Goodput:
    """Requests that met every service level; null where none was asked for."""

    goodput: str | None = column(
        "the service levels in ms, as in ttft:2000 tpot:200", over_runs="first"
    )
    request_goodput: float | None = column(
        "requests per second that met every level, until the last token",
        "requests/s",
        source=SOURCE,
        over_runs="mean",
        better="higher",
    )
    slo_attainment_pct: float | None = column(
        "the same requests, of all that were asked for", "%", over_runs="mean", better="higher"
    )


def text(levels: Mapping[str, float]) -> str:
    """Service levels as the flag spells them."""
    return " ".join(f"{name}:{limit:g}" for name, limit in levels.items())


def goodput_of(requests: pa.Table, levels: Mapping[str, float], num_prompts: int) -> Goodput:
    """Goodput of a run that was asked for `num_prompts` requests. requests: table REQUESTS.

    levels: limits in ms by "ttft", "tpot", "e2el". A request is good if it meets all of them (<=).
    One token alone has a tpot of 0. A request without tokens is not good.
    """
    if not levels:
        return nothing(Goodput)
    times = TokenTimes.of(requests)
    good = times.counts > 0
    latencies = times.by_name()
    latencies["tpot"] = np.where(times.counts == 1, 0.0, latencies["tpot"])
    for name, limit in levels.items():
        good &= latencies[name] <= limit
    duration = float(times.times.max(initial=0.0))
    return Goodput(
        goodput=text(levels),
        request_goodput=float(good.sum() / duration) if duration > 0 else None,
        slo_attainment_pct=100.0 * float(good.sum()) / num_prompts if num_prompts else None,
    )
