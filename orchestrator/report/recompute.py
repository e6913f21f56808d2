"""What was kept of observed runs beside the same worked out again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.recompute import DIFFERENT, EQUAL, LEFT_OUT, RECOMPUTED, Recomputed
from orchestrator.experiment import layout_name

COLOURS = {EQUAL: "green", DIFFERENT: "red"}
TITLES = ("model", "layout", "scenario", "concurrent", "start", "from its spans", "difference")


def render(found: Sequence[Recomputed], console: Console) -> None:
    """Print a row for each observed cell and start, and how many are equal."""
    table = Table(box=SIMPLE_HEAD)
    for title in TITLES:
        table.add_column(title, overflow="fold")
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


def as_data(found: Sequence[Recomputed]) -> list[dict[str, object]]:
    """The rows as plain data."""
    return RECOMPUTED.data(found)
