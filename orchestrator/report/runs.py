"""The list of what was run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from orchestrator.store.catalog import Listed
from orchestrator.store.schema import COMPLETED, FAILED, INVALID

UNLIMITED = 100_000  # columns


def render(listed: Sequence[Listed], console: Console) -> None:
    """Print a row an experiment: on one line where it goes to a file or a pipe."""
    if not listed:
        console.print("Nothing was run here yet; `orchestrator submit` does.")
        return
    table = _table(listed)
    if not console.is_terminal:
        unlimited = console.options.update(width=UNLIMITED)
        console.width = max(console.width, Measurement.get(console, unlimited, table).maximum)
    console.print(table)


def _table(listed: Sequence[Listed]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for title in ("started", "model", "strategies"):
        table.add_column(title)
    for title in (COMPLETED, INVALID, FAILED):
        table.add_column(title, justify="right")
    table.add_column("folder", overflow="fold")
    for one in listed:
        table.add_row(
            one.started_at,
            escape(one.model),
            escape(", ".join(one.strategies)),
            *map(str, (one.completed, one.invalid, one.failed)),
            escape(one.folder),
        )
    return table
