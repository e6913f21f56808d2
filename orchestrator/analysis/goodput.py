"""Goodput: requests per second that meet every service level asked for, as vLLM's serving benchmark
defines it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.store.schema import RUN_KEY
from workers.records import column

FIELDS = (
    column("goodput", pa.string()),
    column("request_goodput", pa.float64(), "requests/s"),
    column("slo_attainment_pct", pa.float64(), "%"),
)


def text(levels: Mapping[str, float]) -> str:
    """Service levels as the flag spells them."""
    return " ".join(f"{name}:{limit:g}" for name, limit in levels.items())


def of_requests(
    requests: pa.Table, levels: Mapping[str, float], num_prompts: int
) -> dict[str, Any]:
    """The columns goodput (the levels), request_goodput and slo_attainment_pct (of `num_prompts`);
    nothing without levels.

    requests: in the schema REQUESTS. levels: limits in ms by "ttft", "tpot", "e2el". A request is
    good if it meets all of them (<=); one token alone has a tpot of 0; a request without tokens is
    not good. Per second until the last token.
    """
    if not levels:
        return {}
    rows = [
        row
        for row in requests.select(["arrival_s", "token_times_s"]).to_pylist()
        if row["token_times_s"]
    ]
    latencies = _latencies_ms(rows)
    good = np.ones(len(rows), dtype=bool)
    for name, limit in levels.items():
        good &= latencies[name] <= limit
    duration = max((row["token_times_s"][-1] for row in rows), default=0.0)
    return {
        "goodput": text(levels),
        "request_goodput": float(good.sum() / duration) if duration > 0 else None,
        "slo_attainment_pct": 100.0 * float(good.sum()) / num_prompts if num_prompts else None,
    }


def recomputed(
    summary: pa.Table, requests: pa.Table | None, levels: Mapping[str, float]
) -> pa.Table:
    """`summary` with its goodput columns worked out again, for other levels than those of the runs,
    from the kept requests."""
    names = [name for name in RUN_KEY if requests is not None and name in requests.column_names]
    places: dict[tuple[Any, ...], list[int]] = {}
    if requests is not None:
        for place, key in enumerate(
            zip(*(requests.column(name).to_pylist() for name in names), strict=True)
        ):
            places.setdefault(key, []).append(place)
    rows = summary.to_pylist()
    for row in rows:
        row |= dict.fromkeys(field.name for field in FIELDS)
        mine = places.get(tuple(row[name] for name in names))
        if requests is not None and mine:
            row |= of_requests(requests.take(mine), levels, row["num_prompts"])
    fields = [field for field in FIELDS if field.name not in summary.schema.names]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([*summary.schema, *fields], summary.schema.metadata)
    )


def _latencies_ms(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Of each request: arrival to first token, arrival to last, and the mean gap between tokens."""
    arrivals = np.array([row["arrival_s"] for row in rows])
    firsts, lasts = (np.array([row["token_times_s"][i] for row in rows]) for i in (0, -1))
    gaps = np.array([max(len(row["token_times_s"]) - 1, 1) for row in rows])
    return {
        "ttft": 1e3 * (firsts - arrivals),
        "e2el": 1e3 * (lasts - arrivals),
        "tpot": 1e3 * (lasts - firsts) / gaps,
    }
