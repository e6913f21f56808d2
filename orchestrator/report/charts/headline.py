"""What results say in one sentence: which layout to use, under which loads, and how sure that
is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.analysis.comparing.best import Best
from orchestrator.analysis.comparing.metrics import THROUGHPUT, Metric
from orchestrator.analysis.comparing.rounds import load_of
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.store.schema import CellKey
from workers.rows import grouped

# Confidence -> who is ahead, and how sure that is. verb: what a layout does to tokens.
LEADS = {
    "shown": "{names} {verb}s the most tokens per second {where}{ahead}",
    "equal": "{names} {verb} the most tokens per second {where}",
    "mean": "{names} {verb}s the most tokens per second {where}{ahead}",
    "none": "no layout is ahead of all others {where}",
}
SURE = {
    "shown": "shown at 95% confidence over {rounds} rounds of starts",
    "equal": "not told apart at 95% confidence over {rounds} rounds of starts",
    "mean": "by the means alone, which shows nothing yet: {why}",
    "none": "each is beaten in the rounds that it shares with another, or lacks figures",
}
ONCE = "each layout was started once"
APART = "too few of their starts are of the same rounds"
WEAKEST_FIRST = ("none", "mean", "equal", "shown")


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict on one scenario of an experiment. confidence: how sure it is, in a word, which
    the style sheet has a colour for: shown, equal, mean or none."""

    experiment: str
    scenario: str
    sentence: str
    confidence: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Who is ahead under one load, and by how much of the next. rounds: of starts, behind that.
    starts: of the layout that has the most."""

    concurrency: int
    names: Sequence[str]
    confidence: str
    ratio: float | None
    rounds: int
    starts: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What the sentence is about. verb: what layouts do to the tokens that `metric` counts."""

    metric: Metric = THROUGHPUT
    verb: str = "make"

    def is_of(self, one: Best | Verdict) -> bool:
        """Whether a finding is about it."""
        return one.metric == self.metric.column

    def lead(self, mine: Sequence[Standing], is_all: bool) -> str:
        """Who is ahead under these loads. is_all: whether there are no others."""
        where = self.metric.at.format(listed([str(one.concurrency) for one in mine]))
        if is_all and len(mine) > 1:
            where = f"at every load ({where.removeprefix('at ')})"
        return LEADS[mine[0].confidence].format(
            names=listed(mine[0].names), verb=self.verb, where=where, ahead=_ahead(mine)
        )


class Compared(Protocol):
    """A cell of a comparison, and its completed starts."""

    @property
    def cell(self) -> CellKey:
        """Which one."""
        ...

    @property
    def num_starts(self) -> int:
        """How many there are."""
        ...


SERVING = Speed()


def headlines(
    comparison: Iterable[Compared],
    best: Iterable[Best],
    verdicts: Iterable[Verdict],
    speed: Speed = SERVING,
) -> list[Headline]:
    """One for each scenario of which two layouts or more have a result."""
    cells = grouped(comparison, lambda one: load_of(one.cell))
    starts = {load: max(one.num_starts for one in mine) for load, mine in cells.items()}
    pairs = grouped((one for one in verdicts if speed.is_of(one)), lambda one: one.load)
    contested = (one for one in best if speed.is_of(one) and one.load in pairs)
    scenarios = grouped(contested, lambda one: (one.experiment, one.scenario))

    def standings(mine: Sequence[Best]) -> list[Standing]:
        return [_standing(one, pairs[one.load], starts[one.load]) for one in mine]

    return [_headline(*where, standings(mine), speed) for where, mine in scenarios.items()]


def _standing(one: Best, verdicts: Sequence[Verdict], starts: int) -> Standing:
    names, confidence, first = one.layouts or (), "none", verdicts[0]
    are_tested = all(pair.rounds > 1 for pair in verdicts)
    if one.layouts is not None and (are_tested or len(one.layouts) == 1):
        confidence = "shown" if len(one.layouts) == 1 else "equal"
    elif one.leader is not None:
        names, confidence = (one.leader,), "mean"
    return Standing(one.max_concurrency, names, confidence, first.ratio, first.rounds, starts)


def _headline(experiment: str, scenario: str, found: Sequence[Standing], speed: Speed) -> Headline:
    ordered = sorted(found, key=lambda one: one.concurrency)
    alike = grouped(ordered, lambda one: (one.confidence, tuple(one.names)))
    by_confidence = grouped(alike.values(), lambda mine: mine[0].confidence)
    said = [
        f"{'; '.join(speed.lead(mine, len(alike) == 1) for mine in groups)}: {_sure(groups)}"
        for groups in by_confidence.values()
    ]
    weakest = next(name for name in WEAKEST_FIRST if name in by_confidence)
    return Headline(experiment, scenario, f"{'. '.join(said)}.", weakest)


def _ahead(mine: Sequence[Standing]) -> str:
    """How far the first is ahead of the next, over these loads."""
    ratios = sorted(one.ratio for one in mine if one.ratio is not None)
    if not ratios:
        return ""
    low, high = (f"{ratio:.2f}" for ratio in (ratios[0], ratios[-1]))
    return f", {low}x the next" if low == high else f", {low}x to {high}x the next"


def _sure(groups: Sequence[Sequence[Standing]]) -> str:
    """How sure that is of loads with the same confidence."""
    every = [one for mine in groups for one in mine]
    why = ONCE if max(one.starts for one in every) == 1 else APART
    return SURE[every[0].confidence].format(rounds=min(one.rounds for one in every), why=why)


def listed(names: Sequence[str]) -> str:
    """In words: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
