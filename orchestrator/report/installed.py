"""What strategies and engines there are, with what each says of itself, and why one that is broken
is."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strategies.registry import ALIASES, discover
from workers import engines


def installed() -> dict[str, list[dict[str, Any]]]:
    """{"strategies": ..., "engines": ...}: rows of name, summary, source and error; error is None
    where all is well."""
    found = [
        {"name": s.key, "summary": s.summary, "source": s.source, "error": s.error}
        for s in discover().values()
    ]
    return {
        "strategies": found,
        "engines": [_engine(point) for point in sorted(entry_points(group=engines.GROUP))],
    }


def render(found: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print a table of strategies and one of engines."""
    for kind, rows in found.items():
        table = Table(box=SIMPLE_HEAD, title=kind, title_justify="left")
        for title in ("name", "what it does", "from"):
            table.add_column(title)
        for row in rows:
            text = (
                f"[red]cannot be loaded: {escape(row['error'])}[/red]"
                if row["error"]
                else escape(row["summary"])
            )
            table.add_row(row["name"], text, row["source"])
        console.print(table)
    aliases = ", ".join(f"{alias} = {layout}" for alias, layout in ALIASES.items())
    console.print(
        "A layout is strategies and their numbers, in any order: tp4, tp2pp2, dp4zero3. Aliases: "
        f"{aliases}."
    )


def _engine(point: EntryPoint) -> dict[str, Any]:
    row = {
        "name": point.name,
        "summary": "",
        "source": point.dist.name if point.dist else point.value,
        "error": None,
    }
    try:
        return {**row, "summary": _first_paragraph(type(engines.create(point.name)).__doc__)}
    except engines.EngineError as error:
        return {**row, "error": _reason(error)}


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def _reason(error: engines.EngineError) -> str:
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause else str(error)
