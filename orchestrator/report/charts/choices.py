"""What there is to select on the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.summary import Conditions, Settings
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class ScenarioChoice:
    """A scenario of an experiment. label: with its lengths. loads: each concurrency in words."""

    name: str
    label: str
    concurrencies: Sequence[int]
    loads: Sequence[str]


@dataclass(frozen=True, slots=True)
class ExperimentChoice:
    """An experiment. label: its model, and what tells it apart where two have the same."""

    name: str
    label: str
    scenarios: Sequence[ScenarioChoice]


def choices(comparison: Iterable[Comparison]) -> list[ExperimentChoice]:
    """Every experiment with its scenarios and their concurrencies; those of one model by their
    request rates, closed loops first."""
    experiments = grouped(comparison, lambda one: one.cell.experiment)
    labels = labels_of(experiments)
    return [
        ExperimentChoice(
            name,
            labels[name],
            list(
                map(_scenario, grouped(experiments[name], lambda one: one.cell.scenario).values())
            ),
        )
        for name in labels
    ]


def labels_of(experiments: Mapping[str, Sequence[Comparison]]) -> dict[str, str]:
    """What experiments are called, by name, given the cells of each: the model, with the request
    rate where that tells them apart, else the whole name with the device and the switches that
    are others elsewhere."""
    models = {name: cells[-1].cell.model for name, cells in experiments.items()}
    if len(set(models.values())) == len(models):
        return models
    last = {name: cells[-1] for name, cells in experiments.items()}
    ordered = sorted(last.items(), key=lambda one: one[1].arrivals.request_rate or 0.0)
    by_rate = {name: f"{models[name]}, {rate_of(one) or 'closed loop'}" for name, one in ordered}
    if len(set(by_rate.values())) == len(by_rate):
        return by_rate
    told = {name: [_device(cells), *_settings(cells)] for name, cells in experiments.items()}
    unlike = [n for n, values in enumerate(zip(*told.values(), strict=True)) if len({*values}) > 1]
    return {
        name: ", ".join([f"{models[name]} ({name})", *(values[n] for n in unlike if values[n])])
        for name, values in told.items()
    }


def _device(cells: Sequence[Comparison]) -> str:
    """The kind of device that all cells ran on; empty where they do not agree."""
    names = {one.conditions.device_name for one in cells}
    return (names.pop() or "") if len(names) == 1 else ""


def _settings(cells: Sequence[Comparison]) -> Iterator[str]:
    """Each switch with what it is set to, empty where cells do not agree; those that try the layout
    without something are left out."""
    whole = [one.conditions.settings for one in cells if one.cell.ablation == "none"]
    for field in fields(Settings):
        values = {getattr(one, field.name) for one in whole}
        value = values.pop() if len(values) == 1 else None
        yield f"{field.name.replace('_', ' ')} {value}" if value else ""


def rate_of(one: Comparison) -> str:
    """The rate at which requests arrive, or conversations, in words, of a trace which it is too;
    empty in a closed loop."""
    rate, trace = one.arrivals.request_rate, one.arrivals.trace
    what = "conversations" if one.conditions.num_conversations else "requests"
    if trace:
        return f"a trace ({trace})" + (f", {rate:.3g} {what}/s on average" if rate else "")
    return f"{rate:g} {what}/s" if rate else ""


def load_in_words(one: Comparison) -> str:
    """How many requests are in flight; in an open loop first how many arrive."""
    rate, concurrent = rate_of(one), f"{one.cell.max_concurrency} concurrent"
    return f"{rate}, at most {concurrent}" if rate else concurrent


def lengths_of(asked: Conditions) -> str:
    """The lengths of requests in words, their means where they differ; empty where unknown."""
    if asked.input_len and asked.output_len:
        return f" ({asked.input_len} in / {asked.output_len} out)"
    if asked.mean_input_len and asked.mean_output_len:
        return f" (mean {asked.mean_input_len:.0f} in / {asked.mean_output_len:.0f} out)"
    return ""


def _scenario(cells: Sequence[Comparison]) -> ScenarioChoice:
    asked, name = cells[0].conditions, cells[0].cell.scenario
    loads = {one.cell.max_concurrency: load_in_words(one) for one in cells}
    ordered = sorted(loads)
    return ScenarioChoice(
        name, name + lengths_of(asked), ordered, [loads[number] for number in ordered]
    )
