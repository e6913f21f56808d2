"""What the page says of the layouts beside its charts: verdicts, sweeps, ablations, operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.ablation import Effect
from orchestrator.analysis.comparing.best import Best
from orchestrator.analysis.comparing.compare import Comparison, run_order
from orchestrator.analysis.comparing.curves import Curve
from orchestrator.analysis.comparing.rounds import Load
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.report import sweep
from orchestrator.report.charts.communication import OperationFigures
from orchestrator.report.charts.views import natural
from orchestrator.report.text import figure
from orchestrator.units import format_bytes
from workers.rows import grouped

# Columns of the summary -> how a verdict on them is headed.
METRICS = {
    "output_throughput": "most tokens/s",
    "output_throughput_per_gpu": "most tokens/s per GPU",
    "median_tpot_ms": "shortest time per token",
    "median_ttft_ms": "shortest time to first token",
    "request_goodput": "most goodput",
    "joules_per_output_token": "least energy per token",
}
Pairs = Mapping[tuple[Load, str], Sequence[Verdict]]
ABLATIONS = {"comm": "collectives", "p2p": "peer-to-peer links"}


@dataclass(frozen=True, slots=True)
class Winner:
    """The best layouts by one metric. names: none where nobody can win. shown: whether they are
    shown to be the best; note: the first against the next, or why nothing is shown."""

    names: Sequence[str]
    shown: bool
    note: str


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One concurrency. winners: one a metric, None where it was not measured."""

    concurrency: int
    winners: Sequence[Winner | None]
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One scenario: for each concurrency and metric the best layouts, and all pairs in words."""

    experiment: str
    scenario: str
    metrics: Sequence[str]
    lines: Sequence[VerdictLine]


@dataclass(frozen=True, slots=True)
class Order:
    """In which order the runs of a scenario were made."""

    experiment: str
    scenario: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the sweep over concurrencies says of each layout."""

    experiment: str
    scenario: str
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table: a layout, words, and figures as text."""

    layout: str
    figures: Sequence[str]
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Ablations:
    """What a step costs without its collectives or its links, beside what the profile says."""

    experiment: str
    scenario: str
    rows: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Operations:
    """What the calls of each operation took under one load."""

    experiment: str
    scenario: str
    concurrency: int
    rows: Sequence[Line]


# -- verdicts


def verdicts(best: Iterable[Best], found: Iterable[Verdict]) -> list[Verdicts]:
    """By experiment and scenario; nothing where one layout is alone."""
    pairs = grouped(found, lambda one: (one.load, one.metric))
    contested = [one for one in best if one.leader is None or (one.load, one.metric) in pairs]
    groups = grouped(contested, lambda one: (one.experiment, one.scenario))
    return [_verdicts(*where, mine, pairs) for where, mine in groups.items()]


def _verdicts(experiment: str, scenario: str, best: Sequence[Best], pairs: Pairs) -> Verdicts:
    metrics = [name for name in METRICS if any(one.metric == name for one in best)]
    lines = sorted(grouped(best, lambda one: one.max_concurrency).items())
    return Verdicts(
        experiment,
        scenario,
        [METRICS[name] for name in metrics],
        [_verdict_line(concurrency, mine, metrics, pairs) for concurrency, mine in lines],
    )


def _verdict_line(
    concurrency: int, best: Sequence[Best], metrics: list[str], pairs: Pairs
) -> VerdictLine:
    of = {one.metric: (one, pairs.get((one.load, one.metric), ())) for one in best}
    winners = [_winner(*of[name]) if name in of else None for name in metrics]
    sentences = [one.sentence for _, mine in of.values() for one in mine]
    return VerdictLine(concurrency, winners, sentences)


def _winner(best: Best, pairs: Sequence[Verdict]) -> Winner:
    if best.leader is None:
        return Winner((), False, best.reason or "")
    first = pairs[0]
    times = "" if first.ratio is None else f"{first.ratio:.2f}x {first.other}"
    interval = "" if first.ci_low is None else f"[{first.ci_low:.2f}, {first.ci_high:.2f}]"
    note = " ".join(part for part in (times, interval, best.reason) if part)
    return Winner(best.layouts or (best.leader,), best.layouts is not None, note)


def run_orders(comparison: Iterable[Comparison]) -> list[Order]:
    """By experiment and scenario; nothing where none was run twice."""
    groups = grouped(comparison, lambda one: (one.cell.experiment, one.cell.scenario))
    orders = [Order(*where, run_order(cells)) for where, cells in groups.items()]
    return [order for order in orders if order.sentence]


# -- sweeps and ablations


def sweeps(curves: Iterable[Curve]) -> list[Sweep]:
    """By experiment and scenario."""
    groups = grouped(curves, lambda one: (one.experiment, one.scenario))
    return [Sweep(*where, list(map(sweep.line, mine))) for where, mine in groups.items()]


def ablations(effects: Iterable[tuple[str, Effect]]) -> list[Ablations]:
    """By experiment and scenario. effects: each with the name of its layout."""
    groups = grouped(effects, lambda one: (one[1].cell.experiment, one[1].cell.scenario))
    return [
        Ablations(*where, [_ablation(layout, effect) for layout, effect in mine])
        for where, mine in groups.items()
    ]


def _ablation(layout: str, effect: Effect) -> Line:
    ablation = effect.cell.ablation
    # Without links there is still communication, so the profile has no share to compare with.
    profile = effect.comm_exposed_pct if ablation == "comm" else None
    figures = [
        str(effect.cell.max_concurrency),
        ABLATIONS.get(ablation, ablation),
        figure(effect.decode_ms_per_step),
        figure(effect.decode_ms_per_step_without),
        f"{effect.saved_pct:.1f}%",
        "" if profile is None else f"{profile:.1f}%",
    ]
    return Line(layout, figures)


# -- communication by operation


def operations(found: Iterable[OperationFigures]) -> list[Operations]:
    """By experiment, scenario and concurrency."""
    ordered = sorted(found, key=lambda one: (natural(one.layout), one.phase, one.axis, one.op))
    groups = grouped(ordered, lambda one: (one.experiment, one.scenario, one.concurrency))
    return [Operations(*where, list(map(_operation, mine))) for where, mine in groups.items()]


def _operation(one: OperationFigures) -> Line:
    size = f" of {one.group_size}" if one.group_size else ""
    figures = [
        f"{one.calls:,.0f}",
        "" if one.bytes_per_call is None else format_bytes(round(one.bytes_per_call)),
        *map(figure, (one.transfer_us, one.transfer_us_worst, one.wait_us, one.wait_us_worst)),
        *map(_rate, (one.algbw, one.busbw, one.busbw_worst)),
    ]
    return Line(one.layout, figures, [one.phase, one.op.replace("_", "-"), f"{one.axis}{size}"])


def _rate(value: float | None) -> str:
    """A rate with three digits; one that would be shown as 0.00 is shown as <0.01."""
    return "<0.01" if value is not None and value < 0.005 else figure(value)


# -- what there is to select


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
