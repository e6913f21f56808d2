"""What is shown of each pair of layouts, by each metric: different, equivalent, or neither.

Every interval is at 95% by itself. The verdicts are corrected for their number: for each objective
the pairs of all loads of an experiment and of all its metrics are one family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.contests import Contest, Field, field_of
from orchestrator.analysis.comparing.metrics import METRICS, Metric
from orchestrator.analysis.comparing.rounds import Load, LoadKey, Repeat, completed, load_of, whole
from orchestrator.analysis.comparing.sentences import Outcome, sentence
from orchestrator.analysis.comparing.significance import (
    NOT_SHOWN,
    Decision,
    decide,
    starts_to_differ,
    starts_to_equal,
)
from orchestrator.analysis.summary import Summary
from orchestrator.experiment import DIFFERENCE
from workers.rows import Table, column, grouped, row

ADJUSTED = "Holm, over all pairs, loads and metrics of the objective; null below two rounds"


@row
class Verdict(LoadKey):
    """Two layouts under one load, by one metric."""

    objective: str = column("what is judged: throughput, latency, per-gpu, goodput, energy")
    metric: str = column("the column of the summary that it is judged by")
    better: str = column("the layout with the better mean of the two")
    other: str = column("the other layout")
    ratio: float | None = column(
        "better over other, of means over the rounds that both have; where there are none, of all "
        "starts of each; null where a mean is 0",
        "1",
    )
    ci_low: float | None = column(
        "lower end of its 95% interval, by itself: not adjusted for the number of pairs; null "
        "below two rounds, and where the interval has no end",
        "1",
        source="Fieller 1954, of pairs",
    )
    ci_high: float | None = column("upper end of it", "1", source="Fieller 1954, of pairs")
    rounds: int = column("rounds that both have: the pairs of starts that it is of", "1")
    p_different: float | None = column(
        f"p of equal means, adjusted ({ADJUSTED})", "1", source="Student, Holm 1979"
    )
    p_equivalent: float | None = column(
        "p of a ratio that is not within 1 / (1 + difference) and 1 + difference, adjusted alike",
        "1",
        source="Schuirmann 1987, Holm 1979",
    )
    difference: float = column("the smallest difference that matters, as a share", "1")
    verdict: str = column(
        "different, equivalent or not shown, at 5% of experiments; equivalent where both are shown"
    )
    starts_needed: int | None = column(
        "starts that would show a true difference of that size at 80% power, if pairs go on to "
        "scatter as they did; only where nothing is shown, from two rounds on",
        "1",
    )
    starts_to_equal: int | None = column("the same, to show that equal layouts are equivalent", "1")
    sentence: str = column("the same in words")


VERDICTS = Table("verdicts", Verdict)


@dataclass(frozen=True, slots=True)
class Ruling:
    """The layouts of one load by one metric, and what was found of each pair: those with the first
    layout come first."""

    field: Field
    outcomes: Sequence[Outcome]

    @property
    def verdicts(self) -> list[Verdict]:
        """The rows of its outcomes."""
        return list(map(_verdict, self.outcomes))


def verdicts(runs: Iterable[Summary], difference: float = DIFFERENCE) -> list[Verdict]:
    """For each load and metric that was measured, every pair of layouts."""
    return [verdict for ruling in rulings(runs, difference) for verdict in ruling.verdicts]


def rulings(
    runs: Iterable[Repeat], difference: float = DIFFERENCE, metrics: Sequence[Metric] = METRICS
) -> list[Ruling]:
    """For each load and metric, the layouts in order and what is shown of them.

    difference: the smallest that matters, as a share. metrics: of the workload of these runs. A
    metric that nobody has is left out.
    """
    loads = grouped(completed(whole(runs)), lambda run: load_of(run.cell))
    fields = [field_of(load, mine, metric) for load, mine in loads.items() for metric in metrics]
    known = [field for field in fields if field.order]
    families = grouped((one for field in known for one in field.contests()), _family_of)
    outcomes = [one for family in families.values() for one in _outcomes(family, difference)]
    by_field = grouped(outcomes, lambda one: _name_of(one.contest))
    return [Ruling(field, by_field.get(_name_of(field), ())) for field in known]


def _family_of(contest: Contest) -> tuple[str, str]:
    return contest.load.experiment, contest.metric.objective


def _name_of(found: Field | Contest) -> tuple[Load, str]:
    return found.load, found.metric.column


def _outcomes(family: Sequence[Contest], difference: float) -> Iterator[Outcome]:
    """What is shown of each contest of a family. Those that cannot be tested claim nothing, and do
    not count."""
    pairs = [one.pair for one in family if one.pair.is_testable]
    decisions = iter(decide(pairs, difference))
    for contest in family:
        decision = next(decisions) if contest.pair.is_testable else None
        needed = _needed(contest, decision, difference, len(pairs))
        yield Outcome(contest, contest.ratio, decision, difference, *needed)


def _needed(
    contest: Contest, decision: Decision | None, difference: float, family: int
) -> tuple[int | None, int | None]:
    if decision is None or decision.verdict != NOT_SHOWN:
        return None, None
    pair = contest.pair
    return starts_to_differ(pair, difference, family), starts_to_equal(pair, difference, family)


def _verdict(found: Outcome) -> Verdict:
    contest, ratio, decision = found.contest, found.ratio, found.decision
    return Verdict(
        **contest.load._asdict(),
        objective=contest.metric.objective,
        metric=contest.metric.column,
        better=contest.better.name,
        other=contest.other.name,
        ratio=ratio.value if ratio else None,
        ci_low=ratio.low if ratio else None,
        ci_high=ratio.high if ratio else None,
        rounds=found.rounds,
        p_different=decision.p_different if decision else None,
        p_equivalent=decision.p_equivalent if decision else None,
        difference=found.difference,
        verdict=decision.verdict if decision else NOT_SHOWN,
        starts_needed=found.to_differ,
        starts_to_equal=found.to_equal,
        sentence=sentence(found),
    )
