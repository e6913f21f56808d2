"""Limits on predicted latencies, how far predictions keep from them, and until when they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orchestrator.predict.interval import Estimate
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import Setting
from orchestrator.predict.prediction import Prediction, predict
from orchestrator.predict.replica import Lengths

MOST_CONCURRENT = 1024  # up to which it is looked whether a choice holds
STEPS, FASTEST = 8, 16  # of a rate: how finely, and how many times as fast, it is looked


@dataclass(frozen=True, slots=True)
class Objective:
    """At most so many ms of a median latency: "ttft", "tpot" or "e2el"."""

    metric: str
    limit_ms: float

    def of(self, one: Prediction, lengths: Lengths) -> Estimate | None:
        """What is predicted of it, in ms; None where nothing is. E2EL = TTFT + TPOT x (tokens out
        - 1), as of a request; the ends of its interval are those of both."""
        if self.metric == "tpot":
            return one.tpot_ms
        first, each, times = one.ttft_ms, one.tpot_ms, lengths.passes
        if first is None or self.metric == "ttft":
            return first
        return Estimate(
            first.value + each.value * times,
            first.low + each.low * times,
            first.high + each.high * times,
        )


@dataclass(frozen=True, slots=True)
class Margin:
    """An objective and what is predicted of it, in ms."""

    objective: Objective
    predicted: Estimate

    @property
    def share(self) -> float:
        """How much of the limit is left; negative: how far it is exceeded."""
        return 1 - self.predicted.value / self.objective.limit_ms

    @property
    def far_share(self) -> float:
        """The same at the far end of the 90% interval."""
        return 1 - self.predicted.high / self.objective.limit_ms


def margins(
    objectives: Iterable[Objective], one: Prediction, lengths: Lengths
) -> tuple[Margin, ...] | None:
    """Of each objective; None where one of them is on what is not predicted."""
    found = [(objective, objective.of(one, lengths)) for objective in objectives]
    known = tuple(Margin(objective, said) for objective, said in found if said is not None)
    return known if len(known) == len(found) else None


@dataclass(frozen=True, slots=True)
class Limit:
    """Until when a choice keeps the objectives. concurrency: the most requests in flight at which
    it does. broken: what it misses with one more; None: nothing up to `MOST_CONCURRENT`, or nothing
    is predicted of it. is_full: whether KV has no room for that one more.

    Of an open loop, in requests/s: closed_rate: what a closed loop of all seats completes, so that
    of more, ever more wait. rate: the highest that is no more and keeps the objectives, in steps of
    1 / STEPS of that which was asked for; then `broken` is of the next step, None where that is
    above closed_rate. None: what was asked for is above it already.
    """

    concurrency: int
    broken: Margin | None
    is_full: bool
    rate: float | None = None
    closed_rate: float | None = None


def limit(setting: Setting, name: str, asked: Asked, objectives: Iterable[Objective]) -> Limit:
    """Up to how many requests in flight, or which rate of an open loop, the layout of that name
    keeps the objectives, by doubling and then by bisection. It keeps them as it is asked."""
    return (_rate if asked.arrivals else _concurrency)(
        _Tried(setting, name, tuple(objectives)), asked
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    """A layout, of which other loads are predicted."""

    setting: Setting
    name: str
    objectives: tuple[Objective, ...]

    def at(self, load: Asked) -> Prediction:
        one = predict(self.setting, self.name, load)
        assert isinstance(one, Prediction), "it is predicted of such a load"
        return one

    def least(self, load: Asked) -> Margin | None:
        """What is left of the objective of which least is; None where one is not predicted."""
        found = margins(self.objectives, self.at(load), load.lengths)
        return min(found, key=lambda margin: margin.share) if found else None

    def keeps(self, load: Asked) -> bool:
        least = self.least(load)
        return least is not None and least.share >= 0


def _concurrency(tried: _Tried, asked: Asked) -> Limit:
    found = _highest(
        lambda number: tried.keeps(replace(asked, max_concurrency=number)),
        asked.max_concurrency,
        MOST_CONCURRENT,
    )
    if found >= MOST_CONCURRENT:
        return Limit(found, None, False)
    more = replace(asked, max_concurrency=found + 1)
    return Limit(found, tried.least(more), tried.at(more).in_flight < found + 1)


def _rate(tried: _Tried, asked: Asked) -> Limit:
    """A finite burst can keep the objectives at any rate, so that alone is not enough."""
    made, seats = tried.at(asked).closed_output_throughput, asked.max_concurrency
    assert made is not None, "it is of every open loop"
    most = made * asked.requests / asked.tokens
    if asked.rate > most:
        return Limit(seats, None, False, None, most)

    def keeps(steps: int) -> bool:
        faster = asked.faster(steps / STEPS)
        return faster.rate <= most and tried.keeps(faster)

    found = _highest(keeps, STEPS, STEPS * FASTEST)
    more = asked.faster((found + 1) / STEPS)
    is_looked = found < STEPS * FASTEST and more.rate <= most
    missed = tried.least(more) if is_looked else None
    return Limit(seats, missed, False, asked.rate * found / STEPS, most)


def _highest(keeps: Callable[[int], bool], holds: int, most: int) -> int:
    """The highest number up to `most` that is kept, of which `holds` is one."""
    if holds >= most:
        return holds
    breaks = min(2 * holds, most)
    while keeps(breaks):
        if breaks == most:
            return most
        holds, breaks = breaks, min(2 * breaks, most)
    while breaks - holds > 1:
        middle = (holds + breaks) // 2
        holds, breaks = (middle, breaks) if keeps(middle) else (holds, middle)
    return holds
