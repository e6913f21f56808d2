"""What strategies and engines there are, with what each says of itself, and why one that is broken
is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strategies.registry import ALIASES, discover
from workers import engines


@dataclass(frozen=True, slots=True)
class Plugin:
    """A strategy or an engine. source: the package that it comes from. error: why it cannot be
    loaded; None where all is well."""

    name: str
    summary: str
    source: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Plugins:
    """Everything that a layout can be made of and be run by."""

    strategies: Sequence[Plugin]
    engines: Sequence[Plugin]


def installed() -> Plugins:
    """What is installed here."""
    return Plugins(
        strategies=[
            Plugin(one.key, one.summary, one.source, one.error) for one in discover().values()
        ],
        engines=[_engine(point) for point in sorted(entry_points(group=engines.GROUP))],
    )


def render(found: Plugins, console: Console) -> None:
    """Print a table of strategies and one of engines."""
    console.print(_table("strategies", found.strategies))
    console.print(_table("engines", found.engines))
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
        broken = f"[red]cannot be loaded: {escape(one.error)}[/red]" if one.error else ""
        table.add_row(one.name, broken or escape(one.summary), one.source)
    return table


def _engine(point: EntryPoint) -> Plugin:
    source = point.dist.name if point.dist else point.value
    try:
        summary = _first_paragraph(type(engines.create(point.name)).__doc__)
    except engines.EngineError as error:
        return Plugin(point.name, "", source, _reason(error))
    return Plugin(point.name, summary, source, None)


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def _reason(error: engines.EngineError) -> str:
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause else str(error)
