"""A new result against a base, in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparing.regression import LOST, SLOWER, Difference, Report

STYLES = {SLOWER: "red", LOST: "red"}


def render(report: Report, console: Console) -> None:
    """Print what differs in the environment first, then a line per cell, then what became
    slower."""
    if report.environment:
        console.print(_environment(report.environment))
    else:
        console.print("Same hardware, software and work, as far as the manifests tell.")
    for cell in report.cells:
        console.print(Text(cell.sentence, style=STYLES.get(cell.verdict, "")), soft_wrap=True)
    console.print(_result(report), soft_wrap=True)


def _environment(differences: Iterable[Difference]) -> Table:
    table = Table(
        "different",
        "base",
        "new",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        header_style="dim",
    )
    for one in differences:
        table.add_row(Text(one.what), Text(one.base), Text(one.new))
    return table


def _result(report: Report) -> Text:
    slower = report.regressions
    if not slower:
        return Text("No cell regressed.")
    names = ", ".join(cell.cell for cell in slower)
    said = f"{len(slower)} of {len(report.cells)} cells regressed: {names}"
    return Text(said, style="bold red")
