"""The lists of what was run: here, and as jobs of a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.store.catalog import Listed
from orchestrator.store.schema import COMPLETED, FAILED, INVALID
from workers.rows import SCHEMA_VERSION

SECONDS = len("2026-01-31T12:00:00")


def render(listed: Sequence[Listed], console: Console) -> None:
    """Print a row an experiment."""
    if not listed:
        console.print("Nothing was run here yet; `orchestrator submit` does.")
        return
    console.print(_table(listed))


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


def _table(listed: Sequence[Listed]) -> Table:
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
