"""What there is to select on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.summary import Conditions
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


def lengths_of(asked: Conditions) -> str:
    """The lengths of requests in words, their means where they differ; empty where unknown."""
    if asked.input_len and asked.output_len:
        return f" ({asked.input_len} in / {asked.output_len} out)"
    if asked.mean_input_len and asked.mean_output_len:
        return f" (mean {asked.mean_input_len:.0f} in / {asked.mean_output_len:.0f} out)"
    return ""


def _scenario(cells: Sequence[Comparison]) -> ScenarioChoice:
    asked, name = cells[0].conditions, cells[0].cell.scenario
    return ScenarioChoice(
        name, name + lengths_of(asked), sorted({one.cell.max_concurrency for one in cells})
    )
