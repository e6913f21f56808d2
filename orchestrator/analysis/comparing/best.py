"""Which layouts are best under each load, by each metric: a set, as far as the starts show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.analysis.comparing.contests import Field, Side
from orchestrator.analysis.comparing.metrics import THROUGHPUT
from orchestrator.analysis.comparing.rounds import LoadKey
from orchestrator.analysis.comparing.sentences import Outcome, why_untested
from orchestrator.analysis.comparing.significance import DIFFERENT
from orchestrator.analysis.comparing.verdicts import Ruling
from workers.rows import Table, column, row


@row
class Best(LoadKey):
    """The best layouts of one load by one metric."""

    objective: str = column("what is judged: throughput, latency, per-gpu, goodput, energy")
    metric: str = column("the column of the summary that it is judged by")
    leader: str | None = column("the layout with the best mean; null where nobody can win")
    layouts: Sequence[str] | None = column(
        "the leader and every layout that is not shown to be worse; null where nothing is shown"
    )
    reason: str | None = column("why there is no leader, or why nothing is shown")


BEST = Table("best", Best)


def best(found: Iterable[Ruling]) -> list[Best]:
    """A row for each load and metric that was measured."""
    rulings = list(found)
    speeds = {one.field.load: one.field for one in rulings if one.field.metric is THROUGHPUT}
    return [_best(one, speeds.get(one.field.load)) for one in rulings]


def leader_of(ruling: Ruling, speeds: Field | None) -> Side | None:
    """The layout with the best mean; None where nobody can win."""
    return None if _disputed(ruling, speeds) else ruling.field.order[0]


def set_of(ruling: Ruling) -> list[Side] | None:
    """The first layout and those that are not shown to be worse; None where no pair with the first
    could be tested."""
    contests = _with_first(ruling)
    if all(one.decision is None for one in contests):
        return None
    worse = {
        one.contest.other.name
        for one in contests
        if one.decision is not None and one.decision.verdict == DIFFERENT
    }
    return [side for side in ruling.field.order if side.name not in worse]


def _best(ruling: Ruling, speeds: Field | None) -> Best:
    disputed = _disputed(ruling, speeds)
    sides = None if disputed else set_of(ruling)
    return Best(
        **ruling.field.load._asdict(),
        objective=ruling.field.metric.objective,
        metric=ruling.field.metric.column,
        leader=None if disputed else ruling.field.order[0].name,
        layouts=None if sides is None else [side.name for side in sides],
        reason=disputed or (None if sides else _untested(ruling)),
    )


def _disputed(ruling: Ruling, speeds: Field | None) -> str | None:
    """Why nobody wins: a layout that delivers more tokens has no figure, or each is beaten by
    another one in the rounds that both have."""
    first = ruling.field.order[0]
    faster = list(_faster(first, ruling.field.without, speeds)) if speeds else []
    if faster:
        is_one = len(faster) == 1
        delivers, figures = ("delivers", "its figure is") if is_one else ("deliver", "theirs are")
        return (
            f"nobody is best{ruling.field.metric.subject}: {' and '.join(faster)} {delivers} more "
            f"tokens than {first.name}, and {figures} not known"
        )
    if not ruling.field.is_led:
        return "each is beaten by another in the rounds that both have: run all in one command"
    return None


def _faster(first: Side, without: Sequence[str], speeds: Field) -> Iterator[str]:
    """Those of `without` that deliver more tokens a second than `first`."""
    known = {side.name: side for side in speeds.order}
    for name in without:
        mine = known.get(name)
        theirs = known.get(first.name)
        if mine and theirs and speeds.gain(mine, theirs) > 1.0:
            yield name


def _untested(ruling: Ruling) -> str:
    contests = _with_first(ruling)
    if not contests:
        return "no other layout has a figure"
    nearest = max(contests, key=lambda one: one.rounds)
    return why_untested(nearest)


def _with_first(ruling: Ruling) -> list[Outcome]:
    """The contests of the first layout with each other one."""
    return list(ruling.outcomes[: len(ruling.field.order) - 1])
