"""What is installed here, and what the doctor found of it, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.node.doctor import FAIL, PASS, WARN, Check, counts, verdict
from orchestrator.plan.installed import Plugin, Plugins
from strategies.registry import ALIASES

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
