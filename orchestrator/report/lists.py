"""Lists in a terminal: what is installed here, what the doctor found of it, what was run, here and
as jobs of a cluster, and whether results can be made again from their spans."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.recompute import DIFFERENT, EQUAL, LEFT_OUT, RECOMPUTED, Recomputed
from orchestrator.experiment import layout_name
from orchestrator.node.doctor import FAIL, PASS, WARN, Check, counts, verdict
from orchestrator.plan.installed import Plugin, Plugins
from orchestrator.store.catalog import Listed
from orchestrator.store.schema import COMPLETED, FAILED, INVALID
from strategies.registry import ALIASES
from workers.rows import SCHEMA_VERSION

SECONDS = len("2026-01-31T12:00:00")
COLOURS = {EQUAL: "green", DIFFERENT: "red"}
RECOMPUTED_TITLES = (
    *("model", "layout", "scenario", "concurrent", "start"),
    *("from its spans", "difference"),
)
STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red"}


def render(checks: Sequence[Check], console: Console) -> None:
    """Print a row for each check, how many have each status, and what that means."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("here")
    table.add_column("what to do")
    for check in checks:
        style = STYLES[check.status]
        table.add_row(check.name, Text(check.status, style=style), check.found, check.advice)
    console.print(table)
    numbers = ", ".join(f"{number} {status}" for status, number in counts(checks))
    console.print(f"{verdict(checks)} ({numbers})", highlight=False)


def render_plugins(found: Plugins, console: Console) -> None:
    """Print a table of strategies, one of engines and one of formats of datasets."""
    console.print(_table("strategies", found.strategies))
    console.print(_table("engines", found.engines))
    console.print(_table("formats of datasets", found.datasets))
    aliases = ", ".join(f"{alias} = {layout}" for alias, layout in ALIASES.items())
    console.print(
        "A layout is strategies and their numbers, in any order: tp4, tp2pp2, dp4zero3. Aliases: "
        f"{aliases}."
    )


def _table(title: str, plugins: Sequence[Plugin]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("name", "what it does", "from"):
        table.add_column(heading)
    for one in plugins:
        broken = Text(f"cannot be loaded: {one.error}", style="red") if one.error else None
        table.add_row(one.name, broken or one.summary, one.source)
    return table


def render_recomputed(found: Sequence[Recomputed], console: Console) -> None:
    """Print a row for each observed cell and start, and how many are equal."""
    table = Table(box=SIMPLE_HEAD)
    for title in RECOMPUTED_TITLES:
        table.add_column(title)
    for one in found:
        cell = one.cell
        table.add_row(
            cell.model,
            layout_name(cell.strategy, cell.ablation),
            cell.scenario,
            str(cell.max_concurrency),
            str(one.start),
            Text(one.status, style=COLOURS.get(one.status, "yellow")),
            difference(one),
        )
    console.print(table)
    compared = [one for one in found if one.status in COLOURS]
    equal = sum(one.status == EQUAL for one in compared)
    console.print(
        f"{equal} of {len(compared)} equal what is kept, all but {', '.join(sorted(LEFT_OUT))}.",
        highlight=False,
    )


def difference(one: Recomputed) -> str:
    """The largest difference in words; empty where there is none."""
    if one.where is None:
        return ""
    size = "is there once only" if one.difference is None else f"differs by {one.difference:.3g}"
    return f"{one.where} {size}"


def recomputed_data(found: Sequence[Recomputed]) -> list[dict[str, object]]:
    """The rows as plain data."""
    return RECOMPUTED.data(found)


def render_runs(listed: Sequence[Listed], console: Console) -> None:
    """Print a row an experiment."""
    if not listed:
        console.print("Nothing was run here yet; `orchestrator submit` does.")
        return
    console.print(_runs_table(listed))


def render_rows(
    titles: Sequence[str], rows: Sequence[Sequence[str]], console: Console, nothing: str
) -> None:
    """Print rows of texts likewise; `nothing` where there are none."""
    if not rows:
        console.print(nothing)
        return
    table = Table(*titles, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _runs_table(listed: Sequence[Listed]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for title in ("started (UTC)", "model", "strategies"):
        table.add_column(title)
    for title in (COMPLETED, INVALID, FAILED):
        table.add_column(title, justify="right")
    table.add_column("folder")
    for one in listed:
        table.add_row(
            one.started_at[:SECONDS].replace("T", " "),
            one.model,
            ", ".join(one.strategies),
            *_counts(one),
            one.folder + _remark(one),
        )
    return table


def _is_readable(one: Listed) -> bool:
    return one.schema_version in (None, SCHEMA_VERSION)


def _counts(one: Listed) -> list[str]:
    counts = (one.completed, one.invalid, one.failed)
    return [str(count) if _is_readable(one) else "-" for count in counts]


def _remark(one: Listed) -> str:
    return "" if _is_readable(one) else f" (schema version {one.schema_version}: cannot be read)"
