"""What training says in one sentence: the fastest layout, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.comparing.best import best
from orchestrator.analysis.comparing.rounds import load_of
from orchestrator.analysis.training.comparison import (
    THROUGHPUT,
    TrainingComparison,
    TrainingFindings,
)
from orchestrator.report.charts.headline import Headline, Speed, headlines
from orchestrator.report.text import figure, plural
from orchestrator.store.schema import COMPLETED
from workers.rows import grouped

SPEED = Speed(THROUGHPUT, "train")


def verdicts_of(found: TrainingFindings) -> list[Headline]:
    """One for each load. Of results on GPUs: those on a CPU are no ranking."""
    pairs = [verdict for ruling in found.found for verdict in ruling.verdicts]
    loads = grouped(found.comparison, lambda one: load_of(one.cell)).values()
    return [
        *headlines(found.comparison, best(found.found), pairs, SPEED),
        *filter(None, map(_alone, loads)),
    ]


def _alone(cells: Sequence[TrainingComparison]) -> Headline | None:
    """What is said where fewer than two layouts have a result."""
    done, first = [one for one in cells if one.status == COMPLETED], cells[0].cell
    if len(done) > 1:
        return None
    sentence = _of_one(done[0]) if done else "No layout has a result."
    return Headline(first.experiment, first.scenario, sentence, "none")


def _of_one(one: TrainingComparison) -> str:
    once = one.num_starts == 1
    starts = "in one start" if once else f"the mean of {plural(one.num_starts, 'start')}"
    return (
        f"Only {one.cell.strategy} has a result, {figure(one.rate.tokens_per_second)} tokens per "
        f"second, {starts}: there is nothing to rank it against."
    )
