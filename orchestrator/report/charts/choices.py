"""What there is to select on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.compare import Comparison
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class ScenarioChoice:
    """A scenario of an experiment. label: with its lengths."""

    name: str
    label: str
    concurrencies: Sequence[int]


@dataclass(frozen=True, slots=True)
class ExperimentChoice:
    """An experiment. label: its model, with its whole name where two have the same."""

    name: str
    label: str
    scenarios: Sequence[ScenarioChoice]


def choices(comparison: Iterable[Comparison]) -> list[ExperimentChoice]:
    """Every experiment with its scenarios and their concurrencies."""
    experiments = grouped(comparison, lambda one: one.cell.experiment)
    models = {name: cells[-1].cell.model for name, cells in experiments.items()}
    unique = len(set(models.values())) == len(models)
    return [
        ExperimentChoice(
            name,
            models[name] if unique else f"{models[name]} ({name})",
            list(map(_scenario, grouped(cells, lambda one: one.cell.scenario).values())),
        )
        for name, cells in experiments.items()
    ]


def _scenario(cells: Sequence[Comparison]) -> ScenarioChoice:
    asked, name = cells[0].conditions, cells[0].cell.scenario
    known = asked.input_len and asked.output_len
    lengths = f" ({asked.input_len} in / {asked.output_len} out)" if known else ""
    return ScenarioChoice(name, name + lengths, sorted({one.cell.max_concurrency for one in cells}))
