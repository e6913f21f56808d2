"""Which hardware and layout meet objectives: the fewest GPUs, and the cheapest tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.predict.hardware import Hardware
from orchestrator.predict.layouts import Candidates, Case, candidates
from orchestrator.predict.objectives import Limit, Margin, Objective, limit, margins
from orchestrator.predict.passes import Setting
from orchestrator.predict.prediction import UNKNOWN, NoPrediction, Prediction
from strategies import Layout
from strategies.precision import Precision
from strategies.registry import factorisations

# Parts of GPU-ms that are the work itself; any other one is a bottleneck that could be removed.
WORK = ("weights", "arithmetic")
FAR = "its TTFT is too far outside of what the factors were fitted on, so no limit on it is judged"


@dataclass(frozen=True, slots=True)
class Offer:
    """A layout on all of some GPUs of one kind, as predicted."""

    hardware: Hardware
    gpus: int
    prediction: Prediction
    margins: tuple[Margin, ...]
    layout: Layout
    setting: Setting

    @property
    def meets(self) -> bool:
        """Whether it keeps every objective, as predicted."""
        return all(margin.share >= 0 for margin in self.margins)

    @property
    def is_certain(self) -> bool:
        """Whether it keeps every one at the far end of the 90% interval, too."""
        return all(margin.far_share >= 0 for margin in self.margins)

    @property
    def least(self) -> Margin:
        """The objective with the least margin, or the one that is missed by most."""
        return min(self.margins, key=lambda margin: margin.share)

    @property
    def size(self) -> tuple[int, int, float]:
        """What is smaller: fewer GPUs, of these the one with less memory, and there the faster
        layout."""
        speed = self.prediction.output_throughput.value
        return self.gpus, self.hardware.memory_bytes or 0, -speed

    @property
    def gpu_ms(self) -> float:
        """GPU-milliseconds for each output token."""
        return self.prediction.device_ms_per_token

    @property
    def cost(self) -> float | None:
        """Of a million tokens; None where no price is known."""
        cost = self.prediction.cost_per_million_tokens
        return cost.value if cost else None

    @property
    def price(self) -> float:
        """By which tokens are compared: their cost, else GPU-ms."""
        return self.gpu_ms if self.cost is None else self.cost

    @property
    def bottleneck(self) -> tuple[str, float]:
        """The largest part of GPU-ms that is not the work itself, and its share of all."""
        one = self.prediction
        shares = {
            name: getattr(one.parts, name) / one.device_ms_per_token
            for name in one.parts.__slots__
            if name not in WORK
        }
        shares["outside"] = one.outside_ms_per_token / one.device_ms_per_token
        return max(shares.items(), key=lambda pair: pair[1])

    @property
    def memory_share(self) -> float | None:
        """Of the fullest GPU; None where its memory is not known."""
        there = self.prediction.memory.available
        return self.prediction.memory.total / there if there else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be found. hardware: the kinds that come into question. counts: GPUs, ascending.
    prices: of an hour of one GPU, by the kind's name."""

    case: Case
    objectives: tuple[Objective, ...]
    hardware: tuple[Hardware, ...]
    counts: tuple[int, ...]
    prices: Mapping[str, float]

    def on(self, hardware: Hardware, precision: Precision | None = None) -> Case:
        """The case on one kind of GPU."""
        asked = replace(self.case.asked, gpu_hour_cost=self.prices.get(hardware.name))
        kept = precision or self.case.precision
        return replace(self.case, hardware=hardware, asked=asked, precision=kept)


@dataclass(frozen=True, slots=True)
class Refusal:
    """So many GPUs of a kind on which nothing can run, or of which nothing can be said."""

    gpu: str
    gpus: int
    refused: NoPrediction


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found on so many GPUs of one kind, the fastest first."""

    hardware: Hardware
    gpus: int
    offers: tuple[Offer, ...]
    refused: tuple[NoPrediction, ...]

    @property
    def refusal(self) -> Refusal | None:
        """Why a layout has no prediction: of the one that cuts the model least."""
        name = self.hardware.name
        return Refusal(name, self.gpus, self.refused[-1]) if self.refused else None

    @property
    def size(self) -> tuple[int, int]:
        """What is smaller: fewer GPUs, of these those with less memory."""
        return self.gpus, self.hardware.memory_bytes or 0


@dataclass(frozen=True, slots=True)
class Choice:
    """An offer, and what would change it. smaller: what is smaller, and misses by least; with no
    prediction of any, why. fp8: the smallest offer of the same kind of GPU in FP8, where that takes
    half the GPUs or less."""

    offer: Offer
    limit: Limit
    smaller: Offer | Refusal | None
    fp8: Offer | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """smallest, cheapest: None where nothing meets the objectives. looked: everything."""

    wanted: Wanted
    smallest: Choice | None
    cheapest: Choice | None
    looked: tuple[Looked, ...]

    @property
    def offers(self) -> list[Offer]:
        """All of them."""
        return [one for each in self.looked for one in each.offers]

    def of(self, hardware: Hardware) -> Offer | None:
        """The smallest of one kind of GPU that meets the objectives; else that which comes
        nearest; None where none is predicted."""
        mine = [one for one in self.offers if one.hardware.name == hardware.name]
        return smallest(mine) or nearest(mine)

    def refusal(self, hardware: Hardware) -> Refusal | None:
        """Why nothing is predicted of one kind: said of the most GPUs."""
        mine = [one for one in self.looked if one.hardware.name == hardware.name]
        return mine[-1].refusal  # looked at are rising numbers of GPUs


def recommend(wanted: Wanted) -> Recommendation:
    """Look at every layout of every count and kind."""
    looked = tuple(_looked(wanted, kind) for kind in _kinds(wanted))
    offers = [one for each in looked for one in each.offers]
    least, best = smallest(offers), cheapest(offers, wanted.prices)
    first, second = (_choice(wanted, one, looked) for one in (least, best))
    return Recommendation(wanted, first, second, looked)


def smallest(offers: Sequence[Offer]) -> Offer | None:
    """The smallest that meets the objectives."""
    return min((one for one in offers if one.meets), key=lambda one: one.size, default=None)


def cheapest(offers: Sequence[Offer], prices: Mapping[str, float]) -> Offer | None:
    """That with the cheapest tokens where prices are known, else with the fewest GPU-ms for
    each."""
    known = [one for one in offers if one.meets and (not prices or one.cost is not None)]
    return min(known, key=lambda one: one.price, default=None)


def nearest(offers: Sequence[Offer]) -> Offer | None:
    """That which misses by least, or keeps the most from its limits."""
    return max(offers, key=lambda one: one.least.share, default=None)


def _kinds(wanted: Wanted) -> Iterator[Candidates]:
    cases = [wanted.on(hardware) for hardware in wanted.hardware]
    for placed in [_candidates(cases[0], gpus) for gpus in wanted.counts]:
        yield from (placed.on(case) for case in cases)


def _candidates(case: Case, gpus: int) -> Candidates:
    return candidates(case, tuple(factorisations(gpus)), gpus, case.asked.max_concurrency)


def _looked(wanted: Wanted, found: Candidates) -> Looked:
    """What one number of GPUs of one kind offers."""
    case = found.case
    ranking = found.ranking(case.asked.max_concurrency)
    made = {layout.name: (layout, setting) for layout, setting in found.settings}
    judged = [
        (one, margins(wanted.objectives, one, case.asked.lengths)) for one in ranking.predictions
    ]
    offers = tuple(
        Offer(case.hardware, one.num_gpus, one, kept, *made[one.layout])
        for one, kept in judged
        if kept is not None
    )
    unjudged = (NoPrediction(one.layout, UNKNOWN, FAR) for one, kept in judged if kept is None)
    return Looked(case.hardware, found.gpus, offers, (*ranking.refused, *unjudged))


def _choice(wanted: Wanted, offer: Offer | None, looked: Sequence[Looked]) -> Choice | None:
    if offer is None:
        return None
    name, asked = offer.layout.name, wanted.case.asked
    until = limit(offer.setting, name, asked, wanted.objectives)
    return Choice(offer, until, _smaller(offer, looked), _in_fp8(wanted, offer))


def _smaller(offer: Offer, looked: Sequence[Looked]) -> Offer | Refusal | None:
    """What is smaller and misses by least, of the same kind of GPU where that has a prediction;
    without any, why the largest of what is smaller has none. None where something smaller meets the
    objectives, or there is nothing smaller."""
    before = sorted((one for one in looked if one.size < offer.size[:2]), key=lambda one: one.size)
    found = [one for each in before for one in each.offers]
    if smallest(found):
        return None
    mine = [one for one in before if one.hardware.name == offer.hardware.name]
    missed = nearest([one for each in mine for one in each.offers]) or nearest(found)
    return missed or next((one.refusal for one in reversed(mine or before)), None)


def _in_fp8(wanted: Wanted, offer: Offer) -> Offer | None:
    """In at most half the GPUs."""
    precision = wanted.case.precision
    counts = [count for count in wanted.counts if 2 * count <= offer.gpus]
    if precision.name != "none":
        return None
    case = wanted.on(offer.hardware, replace(precision, quantization="fp8"))
    looked = (_looked(wanted, _candidates(case, count)) for count in counts)
    return next((found for one in looked if (found := smallest(one.offers))), None)
