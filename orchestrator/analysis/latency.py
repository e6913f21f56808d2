"""When requests were let in and when their tokens came.

TTFT, TPOT, ITL and E2EL are defined as in vLLM's serving benchmark. This is the one home of these
definitions: the summary, goodput and the charts use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workers.rows import column, group, nothing, row

SOURCE = "vLLM, vllm/benchmarks/serve.py"


@row
class Statistics:
    """Over the requests of a run, in milliseconds."""

    mean: float | None = column("{about}, mean", "ms", over_runs="mean", better="lower")
    median: float | None = column("{about}, median", "ms", over_runs="mean", better="lower")
    std: float | None = column(
        "{about}, standard deviation of the population", "ms", over_runs="mean", better="lower"
    )
    p99: float | None = column(
        "{about}, 99th percentile, linear between ranks", "ms", over_runs="mean", better="lower"
    )


@row
class Latency:
    """How long requests and tokens took."""

    ttft: Statistics = group(
        "{}_ttft_ms", "time from a request's arrival to its first token", source=SOURCE
    )
    tpot: Statistics = group(
        "{}_tpot_ms",
        "time per output token of a request after its first: (e2el - ttft) / (tokens - 1)",
        source=SOURCE,
    )
    itl: Statistics = group(
        "{}_itl_ms", "gap between two tokens of a request, pooled over requests", source=SOURCE
    )
    e2el: Statistics = group(
        "{}_e2el_ms", "time from a request's arrival to its last token", source=SOURCE
    )

    @property
    def user_speed(self) -> float | None:
        """Tokens per second that one user sees: 1000 / median TPOT in ms."""
        return 1e3 / self.tpot.median if self.tpot.median else None


@row
class Arrivals:
    """Requests of an open loop; null in a closed one, whose requests wait for a seat of theirs."""

    request_rate: float | None = column(
        "requests that arrive a second, or conversations; of a trace, their mean until the last "
        "one, null where an imported one does not say it",
        "requests/s",
        over_runs="first",
    )
    burstiness: float | None = column(
        "shape of the gamma distributed gaps between them; 1 is a Poisson process; null of a trace",
        "1",
        source=SOURCE,
        over_runs="first",
    )
    trace: str | None = column(
        "of a trace, the part that is served and how much faster than it was, or the words of an "
        "imported one; null: no trace",
        over_runs="first",
    )
    mean_schedule_delay_ms: float | None = column(
        "from a request's scheduled arrival to being let in, mean: the client's own queue, for a "
        "seat, for KV, for the step under way",
        "ms",
        over_runs="mean",
        better="lower",
    )
    median_schedule_delay_ms: float | None = column(
        "the same, median", "ms", over_runs="mean", better="lower"
    )
    p99_schedule_delay_ms: float | None = column(
        "the same, 99th percentile", "ms", over_runs="mean", better="lower"
    )

    @property
    def is_open(self) -> bool:
        """Whether requests arrive at times of their own."""
        return self.request_rate is not None or self.trace is not None


@dataclass(frozen=True)
class TokenTimes:
    """The token times of a requests table, request by request, in seconds since the run's start.

    arrivals: float64 [requests]. counts: int64 [requests], tokens of each. times: float64
    [tokens], request after request. A request without tokens has NaN as its first and last.
    """

    arrivals: np.ndarray
    counts: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, requests: pa.Table) -> TokenTimes:
        """The times in a table with the columns arrival_s and token_times_s."""
        lists = requests.column("token_times_s")
        counts = pc.fill_null(pc.list_value_length(lists), 0)
        return cls(
            np.asarray(requests.column("arrival_s"), dtype=float),
            np.asarray(counts, dtype=np.int64),
            np.asarray(pc.list_flatten(lists), dtype=float),
        )

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [requests]: where in `times` the tokens of each request end."""
        return np.cumsum(self.counts)

    @cached_property
    def first(self) -> np.ndarray:
        """float64 [requests]: when each request had its first token."""
        return self._at(self.ends - self.counts)

    @cached_property
    def last(self) -> np.ndarray:
        """float64 [requests]: when each request had its last token."""
        return self._at(self.ends - 1)

    def of_each(self) -> list[np.ndarray]:
        """The token times of every request that made one."""
        return [part for part in np.split(self.times, self.ends[:-1]) if part.size]

    def ttft_ms(self) -> np.ndarray:
        """float64 [requests]: arrival to first token; NaN without one."""
        return np.asarray(1e3 * (self.first - self.arrivals))

    def e2el_ms(self) -> np.ndarray:
        """float64 [requests]: arrival to last token; NaN without one."""
        return np.asarray(1e3 * (self.last - self.arrivals))

    def tpot_ms(self) -> np.ndarray:
        """float64 [requests]: (e2el - ttft) / (tokens - 1); NaN below two tokens."""
        gaps = np.maximum(self.counts - 1, 1)
        return np.where(self.counts > 1, 1e3 * (self.last - self.first) / gaps, np.nan)

    def by_name(self) -> dict[str, np.ndarray]:
        """The latencies that a request has one of, by name: float64 [requests] each, in ms."""
        return {"ttft": self.ttft_ms(), "tpot": self.tpot_ms(), "e2el": self.e2el_ms()}

    def itl_ms(self) -> np.ndarray:
        """float64 [gaps]: every gap between two tokens of a request, pooled."""
        within = np.ones(max(len(self.times) - 1, 0), dtype=bool)
        borders = self.ends[:-1]
        within[borders[(borders > 0) & (borders < len(self.times))] - 1] = False
        return np.asarray(1e3 * np.diff(self.times)[within])

    def _at(self, places: np.ndarray) -> np.ndarray:
        known = self.counts > 0
        out = np.full(len(self.counts), np.nan)
        out[known] = self.times[places[known]]
        return out


def latency_of(times: TokenTimes) -> Latency:
    """The latencies of a run."""
    return Latency(
        ttft=statistics_of(times.ttft_ms()),
        tpot=statistics_of(times.tpot_ms()),
        itl=statistics_of(times.itl_ms()),
        e2el=statistics_of(times.e2el_ms()),
    )


def statistics_of(values_ms: np.ndarray) -> Statistics:
    """Statistics of the values that are known (no NaN); None where there is none."""
    known = values_ms[~np.isnan(values_ms)]
    if not known.size:
        return nothing(Statistics)
    return Statistics(
        mean=float(known.mean()),
        median=float(np.median(known)),
        std=float(known.std()),
        p99=float(np.percentile(known, 99)),
    )


def arrivals_of(
    requests: pa.Table,
    request_rate: float | None,
    burstiness: float | None,
    trace: str | None = None,
) -> Arrivals:
    """How requests arrived and were let in. requests: table REQUESTS."""
    known = requests.filter(requests.column("admitted_s").is_valid())
    admitted, arrived = (np.asarray(known.column(name)) for name in ("admitted_s", "arrival_s"))
    delays = 1e3 * (admitted - arrived)
    return Arrivals(
        request_rate=request_rate,
        burstiness=burstiness,
        trace=trace,
        mean_schedule_delay_ms=float(delays.mean()) if delays.size else None,
        median_schedule_delay_ms=float(np.median(delays)) if delays.size else None,
        p99_schedule_delay_ms=float(np.percentile(delays, 99)) if delays.size else None,
    )
