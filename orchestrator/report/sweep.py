"""Sweeps in a terminal, layout by layout: over concurrencies, and over request rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparing.curves import Curve
from orchestrator.analysis.goodput import FoundRate
from orchestrator.report.text import fixed
from workers.rows import grouped

LEGEND = (
    "Each cell: tok/s of all users · tok/s of one (1000 / TPOT). Knee: the point furthest above "
    "the line from the first to the last. Best point: the largest product of the two."
)
RATE_TITLES = (
    "layout",
    "engine",
    "met at req/s",
    "missed at",
    "closed loop",
    "met /GPU",
    "tok/s there",
)


def render(curves: Sequence[Curve], console: Console) -> None:
    """Print each sweep as a table, with a line per layout below; nothing where there is none."""
    for mine in grouped(curves, lambda one: one.sweep).values():
        heading = f"{mine[0].model} · {mine[0].scenario} · against concurrency"
        console.print(heading, style="bold", highlight=False)
        console.print(_table(mine))
        for one in mine:
            console.print(Text(line(one)))
        console.print()
    if curves:
        console.print(LEGEND, style="dim", highlight=False)


def render_rates(found: Sequence[FoundRate], root: Path, console: Console) -> None:
    """Print the highest rate at which each layout meets an SLO, the highest first, with a sentence
    each. root: the folder of the runs."""
    for mine in grouped(found, lambda one: (one.cell.scenario, one.cell.max_concurrency)).values():
        cell = mine[0].cell
        heading = f"{cell.model} · {cell.scenario} · at most {cell.max_concurrency} concurrent"
        console.print(f"{heading} · {mine[0].slo}", style="bold", highlight=False)
        ordered = sorted(mine, key=lambda one: -(one.rate or 0.0))
        console.print(_rate_table(ordered))
        for one in ordered:
            console.print(Text(one.sentence, style="red" if one.reason else ""))
        console.print()
    console.print(f"Results: {root}", soft_wrap=True, highlight=False)


def _rate_table(found: Sequence[FoundRate]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    for title in RATE_TITLES:
        table.add_column(title, justify="left" if title in ("layout", "engine") else "right")
    for one in found:
        rates = (one.rate, one.missed_rate, one.closed_rate, one.rate_per_gpu)
        shown = ("-" if rate is None else f"{rate:.3g}" for rate in rates)
        table.add_row(one.cell.strategy, one.cell.engine, *shown, fixed(one.output_throughput))
    return table


def line(one: Curve) -> str:
    """What a sweep says of one layout."""
    return f"{one.name}: {'; '.join(_said(one))}"


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
