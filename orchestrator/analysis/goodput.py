"""Service levels: goodput, the requests per second that meet every level of a request, and whether
a run meets an SLO, which limits percentiles of its latencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.analysis.latency import SOURCE, TokenTimes
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, nothing, row


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


@row
class Slo:
    """Whether percentiles of the latencies are within their limits; null where none was set."""

    slo: str | None = column("the limits in ms, as in ttft:p99:2000 tpot:p95:50", over_runs="first")
    slo_met: bool | None = column(
        "whether every limit is met, in every run; not where a request made no token",
        over_runs="min",
    )
    slo_ratio: float | None = column(
        "the percentile that is furthest above its limit, or else nearest below it, over that "
        "limit: the largest of the runs; null where a request made no token",
        "1",
        over_runs="max",
        better="lower",
    )
    slo_limiting: str | None = column(
        "the limit which that is, of the first run", over_runs="first"
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of an SLO: `percentile` (0 to 100] of a latency of a run, in at most `ms`."""

    latency: str
    percentile: float
    ms: float

    @property
    def name(self) -> str:
        """As it is written: ttft:p99:2000."""
        return f"{self.latency}:p{self.percentile:g}:{self.ms:g}"


def limits_of(levels: Mapping[str, float]) -> list[Limit]:
    """The limits of an SLO among `levels`, as "ttft:p99"; those of goodput are left out."""
    parts = [(*key.partition(":p"), ms) for key, ms in levels.items()]
    return [Limit(name, float(number), ms) for name, mark, number, ms in parts if mark]


def per_request(levels: Mapping[str, float]) -> dict[str, float]:
    """The levels of goodput among `levels`; those with a percentile are left out."""
    return {key: ms for key, ms in levels.items() if ":p" not in key}


def text(levels: Mapping[str, float]) -> str:
    """Service levels as the flag spells them."""
    return " ".join(f"{name}:{limit:g}" for name, limit in levels.items())


def goodput_of(requests: pa.Table, levels: Mapping[str, float], num_prompts: int) -> Goodput:
    """Goodput of a run that was asked for `num_prompts` requests. requests: table REQUESTS.

    levels: limits in ms by "ttft", "tpot", "e2el"; those of an SLO are left out. A request is good
    if it meets all of them (<=). One token alone has a tpot of 0. A request without tokens is not
    good.
    """
    levels = per_request(levels)
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


def slo_of(requests: pa.Table, levels: Mapping[str, float], num_prompts: int) -> Slo:
    """Whether a run that was asked for `num_prompts` requests meets an SLO. requests: REQUESTS.

    levels: limits in ms by "ttft:p99"; those of goodput are left out. Percentiles are linear
    between ranks, as in the summary. A latency that no request has, as the tpot of one token alone,
    is within any limit.
    """
    limits = limits_of(levels)
    if not limits:
        return nothing(Slo)
    times = TokenTimes.of(requests)
    asked = " ".join(one.name for one in limits)
    if int((times.counts > 0).sum()) < num_prompts:
        return Slo(slo=asked, slo_met=False, slo_ratio=None, slo_limiting=None)
    latencies = {**times.by_name(), "itl": times.itl_ms()}
    ratios = [_percentile(latencies[one.latency], one.percentile) / one.ms for one in limits]
    worst = max(range(len(limits)), key=ratios.__getitem__)
    return Slo(
        slo=asked,
        slo_met=ratios[worst] <= 1.0,
        slo_ratio=ratios[worst],
        slo_limiting=limits[worst].name,
    )


def _percentile(values_ms: np.ndarray, percentile: float) -> float:
    known = values_ms[~np.isnan(values_ms)]
    return float(np.percentile(known, percentile)) if known.size else 0.0


def slo_sentences(of: Mapping[str, Slo]) -> Iterator[str]:
    """What is to be said of layouts that were held to an SLO, by their name: which meet it, and
    each of the others with its limit that is furthest from being met."""
    for asked in dict.fromkeys(one.slo for one in of.values() if one.slo):
        mine = {name: one for name, one in of.items() if one.slo == asked}
        met = [name for name, one in mine.items() if one.slo_met]
        missed = [f"{name} ({slo_miss(one)})" for name, one in mine.items() if not one.slo_met]
        parts = [f"met by {', '.join(met)}"] * bool(met)
        parts += [f"missed by {', '.join(missed)}"] * bool(missed)
        yield f"SLO {asked}: {'; '.join(parts)}."


def slo_miss(one: Slo) -> str:
    """How an SLO is missed, in words."""
    if one.slo_ratio is None:
        return "requests failed"
    return f"{one.slo_ratio:.2f}x the limit of {one.slo_limiting}"


def slo_text(one: Slo) -> str:
    """For a column of a table: "met", or by how much it is missed."""
    if one.slo is None:
        return "-"
    known = "failed" if one.slo_ratio is None else f"{one.slo_ratio:.2f}x"
    return "met" if one.slo_met else known


@row
class FoundRate:
    """The highest request rate at which a cell meets an SLO, by bisection over rates."""

    cell: CellKey = group()
    slo: str = column("the limits in ms, as in ttft:p99:2000 tpot:p95:50")
    arriving: str | None = column(
        "what arrives at the rates, which are in these: requests, or conversations"
    )
    rate: float | None = column("the highest rate that was tried and meets it", "requests/s")
    rate_per_gpu: float | None = column("the same for each GPU of the layout", "requests/s")
    output_throughput: float | None = column("generated tokens per second at it", "tokens/s")
    missed_rate: float | None = column("the lowest rate that was tried and misses it", "requests/s")
    missed_by: str | None = column("what is missed there, and by how much")
    closed_rate: float | None = column(
        "what a closed loop completes of it in a second: no higher rate is tried", "requests/s"
    )
    tried_rates: Sequence[float] = column("the rates, in the order in which they were tried", "1")
    tried_met: Sequence[bool] = column("whether each of them meets the SLO")
    reason: str | None = column("why the search ended before it was done")

    @property
    def finding(self) -> str:
        """What was found of the layout, in words."""
        count = len(self.tried_rates)
        tried = f"{count} rate{'s' * (count != 1)} tried"
        early = f"; the search ended early: {self.reason}" if self.reason else ""
        return f"{self._found()} ({tried}{early})."

    @property
    def unit(self) -> str:
        """Of the rates."""
        return f"{self.arriving or 'requests'}/s"

    def _found(self) -> str:
        missed = f"{self.missed_rate:g} {self.unit}: {self.missed_by}" if self.missed_rate else ""
        if self.rate is None:
            return f"meets {self.slo} at no rate tried" + (f", the lowest {missed}" * bool(missed))
        found = f"meets {self.slo} up to {self.rate:g} {self.unit}"
        if missed:
            return f"{found}, and not at {missed}"
        return found + ", all that a closed loop completes" * (self.rate == self.closed_rate)


RATES = Table("rates", FoundRate)
