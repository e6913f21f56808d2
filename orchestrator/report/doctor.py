"""What the doctor found, on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.node.doctor import FAIL, PASS, WARN, Check, counts, verdict

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
        table.add_row(
            check.name,
            f"[{style}]{check.status}[/{style}]",
            escape(check.found),
            escape(check.advice),
        )
    console.print(table)
    numbers = ", ".join(f"{number} {status}" for status, number in counts(checks))
    console.print(f"{verdict(checks)} ({numbers})", highlight=False)
