"""The verdict on a claim: memory first, then the rate, then how many requests, then how few bits.

Verdicts are one-sided. "Possible" means that nothing here forbids the figure, and not that any
engine reaches it; the others are certain by the card's data sheet.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.audit import words
from orchestrator.audit.claims import Claim
from orchestrator.audit.limits import MOST_REQUESTS, Deployed

POSSIBLE, AGGREGATE, BITS = "possible", "only as an aggregate", "needs fewer bits"
NO_FIT, IMPOSSIBLE, UNJUDGED = "does not fit in memory", "impossible", "cannot be judged"
# From the best that can be said of a claim to the worst.
ORDER = (POSSIBLE, UNJUDGED, AGGREGATE, BITS, NO_FIT, IMPOSSIBLE)
LEAST_BITS = 1.0  # of a weight, below which no weight says anything


@dataclass(frozen=True, slots=True)
class Audited:
    """A claim and what is to be said of it.

    verdict: one of ORDER. sentence: the verdict with its number. layout, gpu: the candidate that is
    kindest to the claim. limit: the best figure that the arithmetic leaves, in the claim's unit;
    None where there is none. requests: the fewest with which it can be an aggregate. bits: the most
    of a weight with which it fits and is reached. arithmetic: in words, a step each.
    """

    claim: Claim
    verdict: str
    sentence: str
    layout: str | None = None
    gpu: str | None = None
    limit: float | None = None
    requests: int | None = None
    bits: float | None = None
    arithmetic: tuple[str, ...] = ()

    @property
    def _kindness(self) -> tuple[float, ...]:
        """Lower is kinder to the claim."""
        bits = -(self.bits or 0.0)
        return (ORDER.index(self.verdict), self.requests or 0, bits, -self._better)

    @property
    def _better(self) -> float:
        is_least = self.claim.figure and self.claim.figure[0] in LEAST
        return (self.limit or 0.0) * (-1 if is_least else 1)


@dataclass(frozen=True, slots=True)
class Limit:
    """The best value of a figure. of: by deployment and concurrency. words: how it comes about."""

    of: Callable[[Deployed, int], float]
    words: Callable[[Deployed, int], str]


LIMITS = {
    "output_throughput": Limit(lambda on, n: on.throughput(n), words.throughput),
    "per_request_throughput": Limit(lambda on, n: on.speed(n), words.token),
    "tpot_ms": Limit(lambda on, n: 1e3 * on.token_s(n), words.token),
    "ttft_ms": Limit(lambda on, n: 1e3 * on.first_token_s(), words.first_token),
    "memory_gb": Limit(lambda on, n: on.needed / (1 << 30), words.memory_used),
}
LEAST = ("tpot_ms", "ttft_ms", "memory_gb")  # of these a limit is the least value


def judge(claim: Claim, candidates: Sequence[Deployed]) -> Audited:
    """The verdict on a claim, under that of the candidates which is kindest to it. Without any
    candidate nothing but the kind of the figure is known."""
    if not candidates:
        return _unjudged(claim)
    return min((_judged(claim, one) for one in candidates), key=lambda one: one._kindness)


def cannot_be(claim: Claim, reason: str) -> Audited:
    """The verdict on a claim of a layout that the model cannot have."""
    return Audited(claim, IMPOSSIBLE, IMPOSSIBLE, layout=claim.strategy, arithmetic=(reason,))


def _judged(claim: Claim, on: Deployed) -> Audited:
    found = replace(_verdict(claim, on), layout=on.placed.layout.name, gpu=on.card.name)
    return replace(found, arithmetic=(words.memory(on), *found.arithmetic))


def _verdict(claim: Claim, on: Deployed) -> Audited:
    if not on.fits or _is_beyond_the_card(claim, on):
        return _no_fit(claim, on)
    if claim.figure is None:
        return Audited(claim, POSSIBLE, "possible: it fits")
    if claim.kind.needs:
        return _unjudged(claim)
    return _by_rate(claim, on)


def _by_rate(claim: Claim, on: Deployed) -> Audited:
    name, figure = _figure(claim)
    concurrency = _concurrency(claim, on)
    limit = LIMITS[name].of(on, concurrency)
    base = Audited(
        claim,
        POSSIBLE,
        "possible",
        limit=limit if math.isfinite(limit) else None,
        arithmetic=(LIMITS[name].words(on, concurrency),),
    )
    if _reaches(claim, on, concurrency):
        return base
    requests = _least_requests(claim, on)
    if requests is not None:
        step = words.aggregate(on, requests, figure)
        return replace(
            base,
            verdict=AGGREGATE,
            sentence=f"only as an aggregate over >= {requests} requests",
            requests=requests,
            arithmetic=(*base.arithmetic, step),
        )
    return _by_bits(claim, on, base)


def _by_bits(claim: Claim, on: Deployed, base: Audited) -> Audited:
    bits = _most_bits(claim, on)
    if bits is None:
        step = words.too_few_bits(claim, LEAST_BITS)
        return replace(
            base, verdict=IMPOSSIBLE, sentence="impossible", arithmetic=(*base.arithmetic, step)
        )
    concurrency = _concurrency(claim, on)
    step = words.with_bits(bits, LIMITS[_figure(claim)[0]].words(on.with_bits(bits), concurrency))
    return replace(
        base,
        verdict=BITS,
        sentence=f"needs <= {bits:g} bits a weight",
        bits=bits,
        arithmetic=(*base.arithmetic, step),
    )


def _no_fit(claim: Claim, on: Deployed) -> Audited:
    if _is_beyond_the_card(claim, on):
        return Audited(claim, NO_FIT, NO_FIT, arithmetic=(words.beyond_the_card(on),))
    bits = _most_bits(claim, on)
    steps = (words.to_fit(claim, bits), *words.from_the_host(on))
    return Audited(claim, NO_FIT, NO_FIT, bits=bits, arithmetic=steps)


def _unjudged(claim: Claim) -> Audited:
    return Audited(
        claim, UNJUDGED, UNJUDGED, arithmetic=(f"What would be needed: {claim.kind.needs}.",)
    )


def _figure(claim: Claim) -> tuple[str, float]:
    assert claim.figure is not None
    return claim.figure


def _concurrency(claim: Claim, on: Deployed) -> int:
    """As it is said; else of one request, or where all replicas serve one."""
    return claim.concurrency or (1 if _is_aggregate(claim) else on.replicas)


def _is_aggregate(claim: Claim) -> bool:
    return _figure(claim)[0] == "output_throughput"


def _is_beyond_the_card(claim: Claim, on: Deployed) -> bool:
    card = on.card.memory
    return bool(claim.memory_gb and card and claim.memory_gb * 1e9 > card)


def _reaches(claim: Claim, on: Deployed, concurrency: int) -> bool:
    name, figure = _figure(claim)
    limit = LIMITS[name].of(on, concurrency)
    return limit <= figure if name in LEAST else limit >= figure


def _least_requests(claim: Claim, on: Deployed) -> int | None:
    """The fewest requests at once whose tokens together can come as fast as is claimed; None where
    no number can, and where the figure is no rate of tokens, or is of one request among several."""
    name, figure = _figure(claim)
    alone = (claim.concurrency or 1) == 1
    if not (_is_aggregate(claim) or (name == "per_request_throughput" and alone)):
        return None
    most = min(on.replicas * on.seats, MOST_REQUESTS)
    if on.throughput(most) < figure:
        return None
    return 1 + bisect.bisect_left(range(1, most + 1), figure, key=on.throughput)


def _most_bits(claim: Claim, on: Deployed) -> float | None:
    """The most bits of a weight, to a tenth, with which the claim fits and is reached; None where
    that takes less than LEAST_BITS."""

    def is_too_many(tenths: int) -> bool:
        other = on.with_bits(tenths / 10)
        judged = claim.figure is not None and not claim.kind.needs
        return not other.fits or (judged and not _reaches(claim, other, _concurrency(claim, other)))

    tenths = range(round(10 * LEAST_BITS), int(10 * on.bits) + 1)
    place = bisect.bisect_left(tenths, True, key=is_too_many)
    return tenths[place - 1] / 10 if place else None
