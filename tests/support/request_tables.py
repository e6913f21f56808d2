"""Tables of requests for tests, from what a request was served like."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from tables import make

from workers.records import REQUESTS


def request(
    token_times_s: Sequence[float],
    arrival_s: float = 0.0,
    replica: int = 0,
    admitted_s: float | None = None,
    input_len: int = 10,
    cached_tokens: int | None = 0,
) -> dict[str, object]:
    """One request. token_times_s: when each of its tokens came."""
    return {
        "replica": replica,
        "input_len": input_len,
        "cached_tokens": cached_tokens,
        "output_len": len(token_times_s),
        "arrival_s": arrival_s,
        "admitted_s": admitted_s,
        "token_times_s": list(token_times_s),
    }


def requests(*rows: dict[str, object]) -> pa.Table:
    """Requests as a table REQUESTS, numbered in their order."""
    return make(REQUESTS, [{"request_index": i, **row} for i, row in enumerate(rows)])
