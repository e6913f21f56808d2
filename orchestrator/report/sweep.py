"""Sweeps, layout by layout: over concurrencies, in a terminal, over request rates, and over
techniques."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparing.ablation import TECHNIQUE_FIGURES, Sides, TechniqueEffect
from orchestrator.analysis.comparing.curves import Curve
from orchestrator.analysis.goodput import FoundRate
from orchestrator.report.charts.views import Names, layout_names
from orchestrator.report.text import fixed, full, three_digits
from workers.rows import grouped

LEGEND = (
    "Each cell: tok/s of all users · tok/s of one (1000 / TPOT). Knee: the point furthest above "
    "the line from the first to the last. Best point: the largest product of the two. Below, lines "
    "through the latencies of c requests in flight, and what follows: its knee is where half of "
    "the highest throughput is reached."
)
RATE_TITLES = ("/GPU", "tok/s there", "missed at", "closed loop")
SHORT_UNITS = {"requests/s": "req/s", "conversations/s": "conv/s"}
MARKS = {True: "✓", False: "✗"}  # whether a rate that was tried meets the SLO


@dataclass(frozen=True, slots=True)
class RateLine:
    """A layout. of_highest: its rate as a share of the highest one. figures: its rate, and those
    under RATE_TITLES. tried: every rate, ascending, and whether it meets the SLO. ended_early: see
    its sentence."""

    layout: str
    of_highest: float
    figures: Sequence[str]
    tried: Sequence[tuple[str, bool]]
    sentence: str
    ended_early: bool


@dataclass(frozen=True, slots=True)
class RateTable:
    """The layouts under one load and SLO. unit: of the rates."""

    heading: str
    unit: str
    rows: Sequence[RateLine]


TECHNIQUE_TITLES = ("figure", "with", "without", "with / without")
# How the figures of a technique are shown, by column: name, unit, and what one of it is.
SHOWN_FIGURES = {
    "output_throughput": ("throughput", "tok/s", 1.0),
    "median_ttft_ms": ("first token, median", "ms", 1.0),
    "median_tpot_ms": ("time per token, median", "ms", 1.0),
    "attention_ms": ("attention, decoding", "ms a step", 1.0),
    "attention_tflops": ("attention, decoding", "TFLOP/s", 1.0),
    "prefill_attention_ms": ("attention, prompts", "ms a step", 1.0),
    "prefill_attention_tflops": ("attention, prompts", "TFLOP/s", 1.0),
    "peak_memory_bytes": ("memory, peak", "MB", 1e6),
    "memory_swing_bytes": ("memory, peak - least", "MB", 1e6),
    "mean_gpu_utilization_pct": ("GPU utilisation", "%", 1.0),
    "joules_per_output_token": ("energy per token", "J", 1.0),
}


@dataclass(frozen=True, slots=True)
class TechniqueTable:
    """A cell with a technique and without. rows: a figure each, under TECHNIQUE_TITLES. note: what
    is to be said of the outputs; empty where they are the same, or unknown."""

    heading: str
    rows: Sequence[Sequence[str]]
    note: str


def render_techniques(found: Sequence[TechniqueEffect], console: Console) -> None:
    """Print what each technique does, cell by cell; nothing where none was left out."""
    for one in technique_tables(found):
        console.print(one.heading, style="bold", highlight=False)
        table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
        for title in TECHNIQUE_TITLES:
            table.add_column(title, justify="left" if title == "figure" else "right")
        for line in one.rows:
            table.add_row(*line)
        console.print(table)
        if one.note:
            console.print(one.note, style="yellow", highlight=False)
    if found:
        legend = "Means over starts, and their 95% intervals; ratios are of starts of one round."
        console.print(legend, style="dim", highlight=False)


def technique_tables(found: Sequence[TechniqueEffect]) -> list[TechniqueTable]:
    """What each technique does, cell by cell: the figures that are known."""
    names = layout_names(replace(one.cell, ablation="none") for one in found)
    return [_technique_table(one, names[replace(one.cell, ablation="none")]) for one in found]


def _technique_table(one: TechniqueEffect, layout: str) -> TechniqueTable:
    cell, settings = one.cell, (one.with_setting, one.without_setting)
    change = f" ({settings[0]} against {settings[1]})" if None not in settings else ""
    load = f"{layout} {cell.scenario} at {cell.max_concurrency} concurrent"
    sides = {figure: getattr(one, name) for name, figure in TECHNIQUE_FIGURES.items()}
    return TechniqueTable(
        heading=f"{cell.ablation}{change} · {cell.model} · {load}",
        rows=[_of_sides(figure.column, of) for figure, of in sides.items() if _is_known(of)],
        note="With and without it other tokens were made." if one.same_output is False else "",
    )


def _is_known(of: Sides) -> bool:
    return of.with_it is not None or of.without is not None


def _of_sides(column: str, of: Sides) -> list[str]:
    name, unit, size = SHOWN_FIGURES[column]
    return [
        f"{name}, {unit}",
        _between(of.with_it, of.with_ci_low, of.with_ci_high, size),
        _between(of.without, of.without_ci_low, of.without_ci_high, size),
        _between(of.ratio, of.ratio_ci_low, of.ratio_ci_high, 1.0),
    ]


def _between(mean: float | None, low: float | None, high: float | None, size: float) -> str:
    """A figure with its interval, where it has one."""
    if mean is None or low is None or high is None:
        return three_digits(mean and mean / size)
    return f"{three_digits(mean / size)} [{three_digits(low / size)}, {three_digits(high / size)}]"


def render(curves: Sequence[Curve], console: Console) -> None:
    """Print each sweep as a table, with a line per layout below; nothing where there is none."""
    several = len({one.experiment for one in curves}) > 1
    for mine in grouped(curves, lambda one: one.sweep).values():
        first = mine[0]
        named = first.experiment if several else first.model
        heading = f"{named} · {first.scenario} · against concurrency"
        console.print(heading, style="bold", highlight=False)
        console.print(_table(mine))
        for text in sentences(mine):
            console.print(Text(full(text)))
        console.print()
    if curves:
        console.print(LEGEND, style="dim", highlight=False)


def render_rates(found: Sequence[FoundRate], console: Console) -> None:
    """Print the highest rate at which each layout meets an SLO, the highest first, with a sentence
    each; nothing where none was searched."""
    for mine in rate_tables(found):
        console.print(mine.heading, style="bold", highlight=False)
        console.print(_rate_table(mine))
        for one in mine.rows:
            console.print(Text(full(one.sentence), style="red" if one.ended_early else ""))
        console.print()


def rate_tables(found: Sequence[FoundRate]) -> list[RateTable]:
    """What searches of rates found, by load and SLO, the layout with the highest rate first."""
    names = layout_names(one.cell for one in found)
    groups = grouped(
        found, lambda one: (one.cell.model, one.cell.scenario, one.cell.max_concurrency, one.slo)
    )
    return [_table_of_rates(mine, names) for mine in groups.values()]


def _table_of_rates(found: Sequence[FoundRate], names: Names) -> RateTable:
    cell = found[0].cell
    engines = {one.cell.engine for one in found}
    work = [cell.model, cell.scenario, f"at most {cell.max_concurrency} concurrent"]
    heading = [*work, *(engines if len(engines) == 1 else ()), found[0].slo]
    highest = max(one.rate or 0.0 for one in found)
    ordered = sorted(found, key=lambda one: -(one.rate or 0.0))
    return RateTable(
        " · ".join(heading),
        found[0].unit,
        [_rate_line(one, names[one.cell], highest) for one in ordered],
    )


def _rate_line(one: FoundRate, layout: str, highest: float) -> RateLine:
    rates = (one.rate, one.rate_per_gpu)
    limits = (one.missed_rate, one.closed_rate)
    figures = [*map(three_digits, rates), fixed(one.output_throughput), *map(three_digits, limits)]
    tried = sorted(zip(one.tried_rates, one.tried_met, strict=True))
    return RateLine(
        layout=layout,
        of_highest=one.rate / highest if one.rate else 0.0,
        figures=figures,
        tried=[(three_digits(rate), met) for rate, met in tried],
        sentence=f"{layout}: {one.finding}",
        ended_early=one.reason is not None,
    )


def _rate_table(found: RateTable) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    table.add_column("layout", no_wrap=True)
    for title in (f"met at {SHORT_UNITS[found.unit]}", *RATE_TITLES):
        table.add_column(title, justify="right")
    table.add_column("tried")
    for one in found.rows:
        tried = " ".join(f"{rate}{MARKS[met]}" for rate, met in one.tried)
        table.add_row(one.layout, *one.figures, tried)
    return table


def sentences(curves: Iterable[Curve]) -> list[str]:
    """What a sweep says of each layout: of the points that were measured, and of the closed form
    through them."""
    return [said for one in curves for said in _sentences(one)]


def _sentences(one: Curve) -> Iterator[str]:
    yield f"{one.name}: {'; '.join(_said(one))}"
    if said := one.fitted.sentence(one.max_concurrency[-1]):
        yield f"{one.name}: {said}"


def _said(one: Curve) -> Iterator[str]:
    first, last = one.max_concurrency[0], one.max_concurrency[-1]
    yield f"knee at {one.knee}" if one.knee else "no knee"
    if one.best_point:
        highest = ", the highest measured" if one.best_point == last else ""
        yield f"best point at {one.best_point}{highest}"
    change = one.user_speed_decay_pct
    if change is not None:
        verb = "loses" if change >= 0 else "gains"
        yield f"a user {verb} {abs(change):.0f}% of their speed from {first} to {last}"
    if one.goodput and one.slo_max_concurrency:
        yield f"meets {one.goodput} up to {one.slo_max_concurrency}"
    elif one.goodput:
        yield f"does not meet {one.goodput}"


def _table(curves: Sequence[Curve]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    table.add_column("concurrent", justify="right")
    for one in curves:
        table.add_column(one.name, justify="right")
    for concurrency in sorted({c for one in curves for c in one.max_concurrency}):
        table.add_row(str(concurrency), *(_point(one, concurrency) for one in curves))
    return table


def _point(one: Curve, concurrency: int) -> str:
    if concurrency not in one.max_concurrency:
        return "-"
    at = one.max_concurrency.index(concurrency)
    throughput, speed = one.output_throughput[at], one.user_speed[at]
    return f"{throughput:.0f} · {'-' if speed is None else f'{speed:.1f}'}"
