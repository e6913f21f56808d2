"""The list of what was run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

UNLIMITED = 100_000  # columns


def render(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a row an experiment, as `results.list_runs` gives them: on one line where it goes to a
    file or a pipe."""
    if not rows:
        console.print("Nothing was run here yet; `orchestrator submit` does.")
        return
    table = Table(box=SIMPLE_HEAD)
    for title in ("started", "model", "strategies"):
        table.add_column(title)
    for title in ("completed", "invalid", "failed"):
        table.add_column(title, justify="right")
    table.add_column("folder", overflow="fold")
    for row in rows:
        table.add_row(
            row["started_at"],
            escape(row["model"]),
            escape(", ".join(row["strategies"])),
            str(row["completed"]),
            str(row["invalid"]),
            str(row["failed"]),
            escape(row["folder"]),
        )
    if not console.is_terminal:
        console.width = max(
            console.width,
            Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum,
        )
    console.print(table)
