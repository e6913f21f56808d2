"""Throughput of a closed loop while it is full: its ramp-up and its drain left out, by concurrency
and not by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

LEAST_TOKENS = 2  # per request in flight; a window that holds fewer says nothing


@dataclass(frozen=True, slots=True)
class Served:
    """The requests of one replica that made tokens: when each was let in, and when its tokens came,
    in seconds."""

    arrivals: np.ndarray
    times: Sequence[np.ndarray]

    @property
    def firsts(self) -> np.ndarray:
        return np.array([t[0] for t in self.times])

    @property
    def ends(self) -> np.ndarray:
        return np.array([t[-1] for t in self.times])

    def in_flight(self, at: float) -> int:
        """Requests let in by the moment `at` and not ended by it."""
        return int((self.arrivals <= at).sum() - (self.ends <= at).sum())

    def slots(self) -> int:
        """Most requests in flight at once."""
        return max(self.in_flight(at) for at in np.unique(self.arrivals))

    def full_from(self) -> float:
        """When each of the requests that were let in at the start has its first token."""
        return float(self.firsts[self.arrivals == self.arrivals.min()].max())

    def full_until(self) -> float:
        """When a slot first stays empty because the queue has run out."""
        last = float(self.arrivals.max())
        slots = self.slots()
        moments = [last, *np.unique(self.ends[self.ends > last])]
        return float(next(at for at in moments if self.in_flight(at) < slots))


def of_requests(requests: pa.Table) -> dict[str, float | None]:
    """steady_output_throughput in tokens/s and steady_s in seconds, from a table in the schema
    REQUESTS.

    The window begins when every request let in at the start has its first token, on the last
    replica, and ends when the first slot of any replica stays empty because its queue has run out.
    A token counts if it came after the beginning and not after the end. Both are None where the
    window holds fewer than two tokens for each request in flight, and where no
    prompt ends in it: a window of decode alone has a speed that no stream of requests can keep up.
    """
    replicas = _replicas(requests)
    nothing: dict[str, float | None] = {"steady_output_throughput": None, "steady_s": None}
    if not replicas:
        return nothing
    start, end = max(r.full_from() for r in replicas), min(r.full_until() for r in replicas)
    times = np.concatenate([t for replica in replicas for t in replica.times])
    tokens = int(((times > start) & (times <= end)).sum())
    firsts = np.concatenate([replica.firsts for replica in replicas])
    if not ((firsts > start) & (firsts <= end)).any() or tokens < LEAST_TOKENS * sum(
        replica.slots() for replica in replicas
    ):
        return nothing
    return {"steady_output_throughput": tokens / (end - start), "steady_s": end - start}


def _replicas(requests: pa.Table) -> list[Served]:
    served: dict[int, list[tuple[float, np.ndarray]]] = {}
    for row in requests.select(["replica", "arrival_s", "token_times_s"]).to_pylist():
        if row["token_times_s"]:
            served.setdefault(row["replica"], []).append(
                (row["arrival_s"], np.asarray(row["token_times_s"]))
            )
    return [
        Served(np.array([a for a, _ in rows]), [t for _, t in rows]) for rows in served.values()
    ]
