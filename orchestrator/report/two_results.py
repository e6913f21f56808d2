"""Two results against each other, in a terminal and as a page: side by side, or the new one held
against the base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparing.changes import (
    BETTER,
    FEW_STARTS,
    MAIN,
    NOT_SHOWN,
    WORSE,
    Change,
)
from orchestrator.analysis.comparing.gate import FAILED, OPEN, Report
from orchestrator.analysis.comparing.gates import BEYOND, UNDECIDED
from orchestrator.analysis.comparing.surroundings import Surroundings
from orchestrator.report import environment, html
from orchestrator.report.charts.ratios import conclusion, data_of, title_of
from orchestrator.report.output import inline_json
from orchestrator.report.text import figure, fixed
from orchestrator.store import folders as kept
from orchestrator.store.schema import COMPLETED
from workers.rows import grouped
from workers.units import format_bytes

SAME = "Same hardware, software and work, as far as the manifests tell."
ALIKE = (
    "new / base is the ratio of the means over starts, with its 95% interval, each by itself: of "
    "20 pairs that are equal, one interval leaves 1 out by chance."
)
FEW = (
    "Where there is no interval a side has one start, and a ratio of those says nothing of noise: "
    "run the same command with --num-starts 3."
)
STYLES = {BETTER: "green", WORSE: "red", BEYOND: "red", UNDECIDED: "yellow"}
CONCLUSIONS = {FAILED: "bold red", OPEN: "bold yellow"}
# Metric -> its heading, and how a value of it is written.
SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    MAIN: ("tok/s", figure),
    "median_ttft_ms": ("TTFT, ms", figure),
    "median_tpot_ms": ("TPOT, ms", figure),
    "p99_tpot_ms": ("p99 TPOT, ms", figure),
    "request_goodput": ("goodput, requests/s", figure),
    "comm_exposed_pct": ("comm, decode", lambda value: figure(value, "%")),
    "bubble_pct": ("bubble", lambda value: figure(value, "%")),
    "joules_per_output_token": ("J/token", figure),
    "peak_memory_bytes": ("memory", lambda value: format_bytes(round(value))),
}
DRAWN = 0.01  # how far from 1 the picture of an interval reaches at least
WIDE = 100  # columns of a terminal that a row takes in one line
IN_TERMINAL = ("median_ttft_ms", "median_tpot_ms")  # beside MAIN


# -- in a terminal


def render_gate(report: Report, console: Console) -> None:
    """Print what differs in the surroundings first, then a line for each cell and gate, then how
    the gate ended."""
    _render_surroundings(report.surroundings, console)
    failing = {id(one) for one in report.failing}
    for one in report.outcomes:
        style = "red" if id(one) in failing else STYLES.get(one.outcome, "")
        console.print(Text(one.sentence, style=style))
    style = CONCLUSIONS.get(report.status, "bold green")
    console.print(Text(report.conclusion, style=style))
    if report.advice:
        console.print(Text(report.advice))


def render_changes(
    folders: Sequence[Path], changes: Sequence[Change], surroundings: Surroundings, console: Console
) -> None:
    """Print two results side by side, a table for each load."""
    base, new = folders
    console.print(Text(f"base  {base}\nnew   {new}"), soft_wrap=True)
    _render_surroundings(surroundings, console)
    for mine in grouped(changes, lambda one: one.joined.load).values():
        console.print(Text(title_of(mine[0]), style="bold"))
        console.print(_side_by_side(mine, console.width))
    for note in notes(changes):
        console.print(Text(note, style="dim"))
    alone = f"What each says by itself: orchestrator compare {base}; orchestrator compare {new}"
    console.print(Text(alone, style="dim"))


def notes(changes: Iterable[Change]) -> list[str]:
    """How the ratios are meant, and why some have no interval."""
    words = {one.change for one in changes}
    with_interval = [ALIKE] if words & {BETTER, WORSE, NOT_SHOWN} else []
    return [*with_interval, *([FEW] if FEW_STARTS in words else [])]


def facts(surroundings: Surroundings) -> list[str]:
    """What is to be known of the surroundings beside the table of their differences."""
    by_sides = grouped(surroundings.unknown, lambda one: one.sides)
    unknown = [
        f"Not known of the {' and the '.join(sides)} result: {', '.join(one.what for one in mine)}."
        for sides, mine in by_sides.items()
    ]
    dirty = [
        f"The code of the {side} result had uncommitted changes." for side in surroundings.dirty
    ]
    same = [] if surroundings.differences else [SAME]
    return [*filter(None, [surroundings.node]), *same, *unknown, *dirty]


def _render_surroundings(surroundings: Surroundings, console: Console) -> None:
    for line in facts(surroundings):
        style = "bold yellow" if line == surroundings.node and surroundings.another_node else ""
        console.print(Text(line, style=style))
    if surroundings.differences:
        table = _table("different", "base", "new")
        for one in surroundings.differences:
            table.add_row(Text(one.what), Text(one.base), Text(one.new))
        console.print(table)


def _side_by_side(changes: Sequence[Change], width: int) -> Table:
    """A row for each layout; an interval stands below its ratio where the terminal is narrow."""
    space = " " if width >= WIDE else "\n"
    table = _table("layout")
    ratios = ("new / base", "TTFT\nnew / base", "TPOT\nnew / base")
    for heading in ("base\ntok/s", "new\ntok/s", *ratios, "starts"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mine in grouped(changes, lambda one: one.cell).values():
        by_metric = {one.metric: one for one in mine}
        main = by_metric[MAIN]
        said = [_ratio(by_metric.get(name), space) for name in (MAIN, *IN_TERMINAL)]
        sides = (Text(value(main, side)) for side in ("base", "new"))
        starts = Text(f"{main.base_starts} / {main.new_starts}")
        table.add_row(Text(main.layout), *sides, *said, starts)
    return table


def value(one: Change, side: str) -> str:
    """The figure of a side, or why there is none."""
    found, status = getattr(one, side), getattr(one, f"{side}_status")
    if status != COMPLETED:
        return str(status)
    return "-" if found is None else SHOWN[one.metric][1](found)


def _ratio(one: Change | None, space: str) -> Text:
    if one is None or one.ratio is None:
        return Text("-")
    return Text(f"{one.ratio:.3f}{space}{interval(one)}".strip(), style=STYLES.get(one.change, ""))


def interval(one: Change) -> str:
    """`[low, high]`, nothing where there is none."""
    known = one.ci_low is not None and one.ci_high is not None
    return f"[{fixed(one.ci_low, 3)}, {fixed(one.ci_high, 3)}]" if known else ""


def _table(*headings: str) -> Table:
    return Table(
        *headings, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim"
    )


# -- as a page


@dataclass(frozen=True, slots=True)
class Mark:
    """The interval of a ratio as it is drawn, in percent of the width: where it begins and ends,
    its value, and 1."""

    low: float
    high: float
    at: float
    one: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric of a cell on the page. change: how it is coloured."""

    base: str
    new: str
    ratio: str
    interval: str
    change: str
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class Load:
    """The cells of one load: layout -> an entry, or none, for each metric that is shown."""

    title: str
    lines: Mapping[str, Sequence[Entry | None]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the results. setup: what was measured, and under which conditions."""

    name: str
    folder: str
    setup: Mapping[str, str]
    environments: Sequence[environment.Environment]


def write_page(
    folders: Sequence[Path], changes: Sequence[Change], surroundings: Surroundings, path: Path
) -> None:
    """Write two results side by side as a page that opens offline. Raises UserError where it cannot
    be written."""
    metrics = [name for name in SHOWN if any(one.metric == name for one in changes)]
    sides = [_side(name, at) for name, at in zip(("base", "new"), folders, strict=True)]
    page = html.drawn(
        "two_results",
        title=", ".join(dict.fromkeys(one.joined.model for one in changes)),
        verdict=conclusion(changes),
        data=inline_json(data_of(changes, {name: SHOWN[name][0] for name in metrics})),
        sides=sides,
        strategies=(one.joined.strategy for one in changes),
        headings=dict.fromkeys(heading for side in sides for heading in side.setup),
        node=surroundings.node if surroundings.another_node else "",
        facts=facts(surroundings),
        differences=surroundings.differences,
        metrics=[SHOWN[name][0] for name in metrics],
        loads=_loads(changes, metrics),
        notes=notes(changes),
    )
    html.write(page, path, "--html")


def _side(name: str, folder: Path) -> Side:
    """The results at a folder."""
    found, content = kept.find(folder), html.Content.of(folder)
    setup = environment.setup(found, content.found.comparison)
    return Side(name, str(folder), setup, list(map(environment.describe, found)))


def _loads(changes: Sequence[Change], metrics: Sequence[str]) -> list[Load]:
    scale = {name: _widest(one for one in changes if one.metric == name) for name in metrics}

    def line(mine: Sequence[Change]) -> list[Entry | None]:
        known = {one.metric: _entry(one, scale[one.metric]) for one in mine}
        return [known.get(name) for name in metrics]

    return [
        Load(
            title_of(of_load[0]),
            {
                mine[0].layout: line(mine)
                for mine in grouped(of_load, lambda one: one.cell).values()
            },
        )
        for of_load in grouped(changes, lambda one: one.joined.load).values()
    ]


def _entry(one: Change, widest: float) -> Entry:
    ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
    sides = value(one, "base"), value(one, "new")
    return Entry(*sides, ratio, interval(one), one.change.replace(" ", "-"), _mark(one, widest))


def _widest(changes: Iterable[Change]) -> float:
    """How far from 1 the intervals of a metric reach: the half of the width that they are drawn
    in."""
    ends = (end for one in changes for end in (one.ci_low, one.ci_high))
    found = max((abs(end - 1.0) for end in ends if end is not None), default=1.0)
    return max(found, DRAWN)


def _mark(one: Change, widest: float) -> Mark | None:
    if one.ratio is None or one.ci_low is None or one.ci_high is None:
        return None

    def place(ratio: float) -> float:
        return round(50.0 + 46.0 * (ratio - 1.0) / widest, 2)

    return Mark(place(one.ci_low), place(one.ci_high), place(one.ratio), 50.0)
