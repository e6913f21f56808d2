"""Limits on predicted latencies, and how far predictions keep from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.predict.interval import Estimate
from orchestrator.predict.prediction import Prediction
from orchestrator.predict.replica import Lengths


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
