"""A new result against a base, in a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.regression import LOST, SLOWER, Report

STYLES = {SLOWER: "red", LOST: "red"}


def render(report: Report, console: Console) -> None:
    """Print what differs in the environment first, then a line per cell, then what became
    slower."""
    if report.environment:
        table = Table(
            "different",
            "base",
            "new",
            box=SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
            pad_edge=False,
            header_style="dim",
        )
        for what, base, new in report.environment:
            table.add_row(Text(what), Text(base), Text(new))
        console.print(table)
    else:
        console.print("Same hardware, software and work, as far as the manifests tell.")
    for cell in report.cells:
        console.print(Text(cell["sentence"], style=STYLES.get(cell["verdict"], "")), soft_wrap=True)
    slower = report.regressions
    if slower:
        names = ", ".join(cell["cell"] for cell in slower)
        console.print(
            Text(
                f"{len(slower)} of {len(report.cells)} cells regressed: {names}", style="bold red"
            ),
            soft_wrap=True,
        )
    else:
        console.print(Text("No cell regressed."))
