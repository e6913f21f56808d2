"""What strategies and engines there are, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.plan.installed import Plugin, Plugins
from strategies.registry import ALIASES


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
