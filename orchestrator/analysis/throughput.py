"""Tokens and requests per second: over the whole run, and while a closed loop is full."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.analysis.latency import SOURCE, TokenTimes
from workers.messages import RankReport
from workers.rows import column, nothing, row

LEAST_TOKENS = 2  # per request in flight; a window that holds fewer says nothing


@row
class Throughput:
    """What was made, and in which time. Per second means until the last token, prefill included."""

    completed: int | None = column("requests that made a token", "requests", source=SOURCE)
    failed: int | None = column(
        "requests of those asked for that made none", "requests", source=SOURCE
    )
    duration: float | None = column(
        "from the start of the run to its last token",
        "s",
        source=SOURCE,
        over_runs="mean",
        better="lower",
    )
    total_input_tokens: int | None = column("prompt tokens of them", "tokens", source=SOURCE)
    total_cached_tokens: int | None = column(
        "of these, found in a prefix cache and not read; null where an engine does not tell",
        "tokens",
        over_runs="mean",
    )
    total_output_tokens: int | None = column("tokens that were made", "tokens", source=SOURCE)
    request_throughput: float | None = column(
        "completed requests per second",
        "requests/s",
        formula="completed / duration",
        source=SOURCE,
        over_runs="mean",
        better="higher",
    )
    output_throughput: float | None = column(
        "generated tokens per second",
        "tokens/s",
        formula="total_output_tokens / duration",
        source=SOURCE,
        over_runs="mean",
        better="higher",
    )
    total_token_throughput: float | None = column(
        "prompt and generated tokens per second",
        "tokens/s",
        formula="(total_input_tokens + total_output_tokens) / duration",
        source=SOURCE,
        over_runs="mean",
        better="higher",
    )
    output_throughput_per_gpu: float | None = column(
        "generated tokens per second and GPU of the layout, replicas included",
        "tokens/s",
        formula="output_throughput / num_gpus",
        over_runs="mean",
        better="higher",
    )
    decode_ms_per_step: float | None = column(
        "mean gap between two tokens of a request in which no request of its replica got its "
        "first token: nobody's prefill is in the way",
        "ms",
        over_runs="mean",
        better="lower",
    )
    prefill_s: float | None = column(
        "until each of the first max_concurrency requests has its first token; of conversations, "
        "their first turns",
        "s",
        over_runs="mean",
        better="lower",
    )


@row
class Steady:
    """A closed loop while it is full: its ramp-up and its drain are left out.

    They are told by concurrency, not by time. Null where the window holds fewer than two tokens
    for each request in flight, and where no prompt ends in it: a window of decode alone has a
    speed that no stream of requests can keep up.
    """

    steady_output_throughput: float | None = column(
        "generated tokens per second while every seat is taken: from the last first token of the "
        "requests let in at the start to the first seat that stays empty, as no request waits",
        "tokens/s",
        over_runs="mean",
        better="higher",
    )
    steady_s: float | None = column("length of that time", "s", over_runs="mean")


def throughput_of(
    requests: pa.Table,
    max_concurrency: int,
    num_prompts: int,
    num_gpus: int,
    turns: Collection[int] = (),
) -> Throughput:
    """Throughput of a run that was asked for `num_prompts` requests.

    requests: table REQUESTS. turns: those that are after another one, by their indices.
    """
    times = TokenTimes.of(requests)
    served = times.counts > 0
    made, completed = len(times.times), int(served.sum())
    read = int(np.asarray(requests.column("input_len"))[served].sum())
    duration = float(times.last[served].max(initial=0.0))
    rate = 1.0 / duration if duration > 0 else None
    return Throughput(
        completed=completed,
        failed=num_prompts - completed,
        duration=duration,
        total_input_tokens=read,
        total_cached_tokens=_cached(requests, served),
        total_output_tokens=made,
        request_throughput=rate and completed * rate,
        output_throughput=rate and made * rate,
        total_token_throughput=rate and (made + read) * rate,
        output_throughput_per_gpu=rate and made * rate / num_gpus,
        decode_ms_per_step=_decode_ms_per_step(times, _replicas(requests)),
        prefill_s=_prefill_s(times, _places(requests, turns) < max_concurrency),
    )


def _cached(requests: pa.Table, served: np.ndarray) -> int | None:
    """Cached tokens of the requests that were served; None where those of one are not known."""
    if "cached_tokens" not in requests.column_names:
        return None
    counts = requests.column("cached_tokens").filter(pa.array(served))
    return None if counts.null_count else sum(counts.to_pylist())


def first_token_s(reports: Iterable[RankReport]) -> float:
    """Seconds from the start of a run to its first token on any replica."""
    tables = [report.requests for report in reports if report.requests is not None]
    firsts = [TokenTimes.of(table).times.min(initial=np.inf) for table in tables]
    return float(min(firsts)) if firsts and np.isfinite(min(firsts)) else 0.0


def _replicas(requests: pa.Table) -> np.ndarray:
    return np.asarray(requests.column("replica"))


def _decode_ms_per_step(times: TokenTimes, replicas: np.ndarray) -> float | None:
    gaps: list[np.ndarray] = []
    replicas = replicas[times.counts > 0]
    served = times.of_each()
    for replica in np.unique(replicas):
        mine = [one for one, its in zip(served, replicas, strict=True) if its == replica]
        firsts = np.sort([one[0] for one in mine])
        for one in mine:
            seen = np.searchsorted(firsts, one, side="right")
            gaps.append(np.diff(one)[np.diff(seen) == 0])
    pooled = np.concatenate(gaps) if gaps else np.empty(0)
    return float(pooled.mean() * 1e3) if pooled.size else None


def _places(requests: pa.Table, turns: Collection[int]) -> np.ndarray:
    """float64 [requests]: the place of each among those that are after no other one; infinite for
    one that is."""
    indices, later = np.asarray(requests.column("request_index")), np.sort(list(turns))
    places = indices - np.searchsorted(later, indices)
    return np.where(np.isin(indices, later), np.inf, places)


def _prefill_s(times: TokenTimes, are_first: np.ndarray) -> float | None:
    firsts = times.first[are_first & (times.counts > 0)]
    return float(firsts.max()) if firsts.size else None


# -- a closed loop while it is full


@dataclass(frozen=True, slots=True)
class _Served:
    """The requests of one replica that made tokens, in seconds since the run's start.

    arrivals: float64 [requests], when each was let in. ready: float64 [requests], from when on it
    could have been: the end of the one that it is after. times: float64 [its tokens] for each.
    """

    arrivals: np.ndarray
    ready: np.ndarray
    times: Sequence[np.ndarray]

    @property
    def firsts(self) -> np.ndarray:
        return np.array([t[0] for t in self.times])

    @property
    def ends(self) -> np.ndarray:
        return np.array([t[-1] for t in self.times])

    def in_flight(self, moments: np.ndarray) -> np.ndarray:
        """int64 [moments]: requests let in by each of them and not ended by it."""
        return _more(self.arrivals, self.ends, moments)

    def waiting(self, moments: np.ndarray) -> np.ndarray:
        """int64 [moments]: requests that could be let in by each of them and were not."""
        return _more(self.ready, self.arrivals, moments)

    def seats(self) -> int:
        """Most requests in flight at once."""
        return int(self.in_flight(self.arrivals).max())

    def full_from(self) -> float:
        """When each of the requests that were let in at the start has its first token."""
        return float(self.firsts[self.arrivals == self.arrivals.min()].max())

    def full_until(self) -> float:
        """When a seat first stays empty because no request waits for one: the queue has run out, or
        has nothing left but turns after replies that go on."""
        moments = np.unique([self.arrivals, self.ends])
        has_run_out = self.waiting(moments) <= 0
        return float(moments[has_run_out & (self.in_flight(moments) < self.seats())][0])


def _more(begins: np.ndarray, ends: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """int64 [moments]: how many have begun by each of them and not ended by it."""
    begun, ended = (np.searchsorted(np.sort(one), moments, side="right") for one in (begins, ends))
    left: np.ndarray = begun - ended
    return left


def steady_of(requests: pa.Table, awaited: Mapping[int, int]) -> Steady:
    """Throughput while the loop is full; see `Steady`.

    requests: table REQUESTS of a closed loop. awaited: request -> the one that it is after, by
    their indices. The window begins on the last replica and ends on the first one. A token counts
    if it came after the beginning and not after the end.
    """
    replicas = _served_by_replica(requests, awaited)
    if not replicas:
        return nothing(Steady)
    start = max(one.full_from() for one in replicas)
    end = min(one.full_until() for one in replicas)
    times = np.concatenate([t for one in replicas for t in one.times])
    firsts = np.concatenate([one.firsts for one in replicas])
    tokens = int(((times > start) & (times <= end)).sum())
    has_prefill = ((firsts > start) & (firsts <= end)).any()
    if not has_prefill or tokens < LEAST_TOKENS * sum(one.seats() for one in replicas):
        return nothing(Steady)
    return Steady(steady_output_throughput=tokens / (end - start), steady_s=end - start)


def _served_by_replica(requests: pa.Table, awaited: Mapping[int, int]) -> list[_Served]:
    times = TokenTimes.of(requests)
    served = times.counts > 0
    replicas, arrivals, made = _replicas(requests)[served], times.arrivals[served], times.of_each()
    indices = np.asarray(requests.column("request_index"))[served].tolist()
    ends = {index: one[-1] for index, one in zip(indices, made, strict=True)}
    ready = np.array([ends.get(awaited.get(index, -1), 0.0) for index in indices])
    places = [np.flatnonzero(replicas == replica) for replica in np.unique(replicas)]
    return [
        _Served(arrivals[mine], ready[mine], [made[place] for place in mine]) for mine in places
    ]
