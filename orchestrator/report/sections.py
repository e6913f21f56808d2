"""What the page says of the layouts beside its charts: verdicts, sweeps, ablations, operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.ablation import Effect
from orchestrator.analysis.comparing.best import Best
from orchestrator.analysis.comparing.compare import Comparison, run_order
from orchestrator.analysis.comparing.confidence import Ratio
from orchestrator.analysis.comparing.curves import Curve
from orchestrator.analysis.comparing.rounds import Load, load_of
from orchestrator.analysis.comparing.sentences import times
from orchestrator.analysis.comparing.spreads import Statistic
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.analysis.observed.communication import PhaseParts
from orchestrator.report import environment, sweep
from orchestrator.report.charts.communication import OperationFigures
from orchestrator.report.charts.views import Names, natural
from orchestrator.report.text import figure
from workers.rows import grouped
from workers.units import format_bytes

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
NEITHER = (None, None)
ABLATIONS = {"comm": "collectives", "p2p": "peer-to-peer links"}


@dataclass(frozen=True, slots=True)
class Winner:
    """The best layouts by one metric. names: none where nobody can win. shown: whether they are
    shown to be the best; ahead: the first against the next; reason: why nothing is shown."""

    names: Sequence[str]
    shown: bool
    ahead: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One concurrency. winners: one a metric, None where it was not measured."""

    concurrency: int
    winners: Sequence[Winner | None]
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One scenario: for each concurrency and metric the best layouts, and all pairs in words.
    reasons: each of the winners' once."""

    experiment: str
    scenario: str
    metrics: Sequence[str]
    lines: Sequence[VerdictLine]
    reasons: Sequence[str]


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


@dataclass(frozen=True, slots=True)
class SpreadLine:
    """A layout. figures: between starts and within a start, a pair a metric."""

    layout: str
    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Spreads:
    """How far the starts of each layout lie apart under one load, and the runs inside them."""

    experiment: str
    scenario: str
    concurrency: int
    metrics: Sequence[str]
    rows: Sequence[SpreadLine]


# -- verdicts


def verdicts(best: Iterable[Best], found: Iterable[Verdict]) -> list[Verdicts]:
    """By experiment and scenario; nothing where one layout is alone."""
    pairs = grouped(found, lambda one: (one.load, one.metric))
    contested = [one for one in best if one.leader is None or (one.load, one.metric) in pairs]
    groups = grouped(contested, lambda one: (one.experiment, one.scenario))
    return [_verdicts(*where, mine, pairs) for where, mine in groups.items()]


def _verdicts(experiment: str, scenario: str, best: Sequence[Best], pairs: Pairs) -> Verdicts:
    metrics = [name for name in METRICS if any(one.metric == name for one in best)]
    loads = sorted(grouped(best, lambda one: one.max_concurrency).items())
    lines = [_verdict_line(concurrency, mine, metrics, pairs) for concurrency, mine in loads]
    winners = (winner for line in lines for winner in line.winners)
    reasons = dict.fromkeys(one.reason for one in winners if one is not None and one.reason)
    titles = [METRICS[name] for name in metrics]
    return Verdicts(experiment, scenario, titles, lines, list(reasons))


def _verdict_line(
    concurrency: int, best: Sequence[Best], metrics: list[str], pairs: Pairs
) -> VerdictLine:
    of = {one.metric: (one, pairs.get((one.load, one.metric), ())) for one in best}
    winners = [_winner(*of[name]) if name in of else None for name in metrics]
    sentences = [one.sentence for _, mine in of.values() for one in mine]
    return VerdictLine(concurrency, winners, sentences)


def _winner(best: Best, pairs: Sequence[Verdict]) -> Winner:
    if best.leader is None:
        return Winner((), False, "", best.reason)
    first = pairs[0]
    ahead = "" if first.ratio is None else _ahead(first.ratio, first)
    return Winner(best.layouts or (best.leader,), best.layouts is not None, ahead, best.reason)


def _ahead(ratio: float, found: Verdict) -> str:
    """How far the first is ahead of the other one, with the interval of that."""
    value, *interval = times(Ratio(ratio, found.ci_low, found.ci_high)).split(" ", 1)
    return " ".join([value, found.other, *interval])


def run_orders(comparison: Iterable[Comparison], nodes: Mapping[str, int]) -> list[Order]:
    """By experiment and scenario; nothing where none was run twice. nodes: how many each experiment
    was run on."""
    groups = grouped(comparison, lambda one: (one.cell.experiment, one.cell.scenario))
    said = {
        where: [run_order(cells), environment.pooled(nodes.get(where[0], 1))]
        for where, cells in groups.items()
    }
    orders = [Order(*where, " ".join(filter(None, lines))) for where, lines in said.items()]
    return [order for order in orders if order.sentence]


# -- how far starts and runs lie apart

APART = {
    "output_throughput": "tokens/s",
    "median_tpot_ms": "time per token",
    "median_ttft_ms": "time to first token",
    "request_goodput": "goodput",
    "joules_per_output_token": "energy per token",
}


def spreads(found: Iterable[Statistic], names: Names) -> list[Spreads]:
    """By experiment, scenario and concurrency; nothing where no layout was run twice."""
    known = [
        one
        for one in found
        if one.metric in APART and one.cell in names and (one.cv_between, one.cv_within) != NEITHER
    ]
    groups = grouped(known, lambda one: load_of(one.cell))
    return [_spreads(load, mine, names) for load, mine in sorted(groups.items())]


def _spreads(load: Load, mine: Sequence[Statistic], names: Names) -> Spreads:
    metrics = [name for name in APART if any(one.metric == name for one in mine)]
    layouts = grouped(mine, lambda one: names[one.cell])
    rows = [
        SpreadLine(layout, [_apart(metric, layouts[layout]) for metric in metrics])
        for layout in sorted(layouts, key=natural)
    ]
    where = load.experiment, load.scenario, load.max_concurrency
    return Spreads(*where, [APART[name] for name in metrics], rows)


def _apart(metric: str, mine: Sequence[Statistic]) -> tuple[str, str]:
    """Coefficients of variation between starts and within one, in percent."""
    one = next((one for one in mine if one.metric == metric), None)
    between, within = (one.cv_between, one.cv_within) if one else NEITHER
    return _cv(between), _cv(within)


def _cv(share: float | None) -> str:
    return "" if share is None else _rate(100 * share) + "%"


# -- sweeps and ablations


def sweeps(curves: Iterable[Curve]) -> list[Sweep]:
    """By experiment and scenario."""
    groups = grouped(curves, lambda one: (one.experiment, one.scenario))
    return [Sweep(*where, sweep.sentences(mine)) for where, mine in groups.items()]


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
    profile = effect.expected_pct if ablation == "comm" else None
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
    return "<0.01" if value is not None and 0 < value < 0.005 else figure(value)


def waits(comparison: Iterable[Comparison], names: Names) -> list[Operations]:
    """What exposed waits were for, by experiment, scenario and concurrency: a row for each layout
    and phase that waits."""
    loads = grouped(comparison, lambda one: load_of(one.cell))
    found = [
        Operations(load.experiment, load.scenario, load.max_concurrency, list(_waits(cells, names)))
        for load, cells in loads.items()
    ]
    return [one for one in found if one.rows]


def _waits(cells: Iterable[Comparison], names: Names) -> Iterator[Line]:
    for one in sorted(cells, key=lambda one: natural(names[one.cell])):
        for phase, seen in (("decode", one.step.decode), ("prefill", one.step.prefill)):
            if seen.exposed_wait.pct:
                yield Line(names[one.cell], _wait(seen), [phase])


def _wait(seen: PhaseParts) -> list[str]:
    causes = [one.pct for one in (seen.wait_compute, seen.wait_launch, seen.wait_communication)]
    known = [one for one in causes if one is not None]
    # Of the starts that know the causes, where any does: then these sum to it.
    whole = sum(known) if len(known) == len(causes) else seen.exposed_wait.pct
    unmatched = "" if seen.steps_unmatched is None else str(seen.steps_unmatched)
    return [*map(_rate, (whole, *causes, seen.exposed_wait.pct_worst)), unmatched]
