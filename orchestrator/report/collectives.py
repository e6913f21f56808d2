"""The table of what ranks send: those that send the same share its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from orchestrator.report.text import ranges
from workers.rows import grouped


class Sent(Protocol):
    """What one operation over one axis sends."""

    @property
    def op(self) -> str:
        """As "all_reduce"."""
        ...

    @property
    def axis(self) -> str:
        """Mesh axes of its group."""
        ...


S = TypeVar("S", bound=Sent)


def collectives_table(
    title: str, ranks: Iterable[tuple[int, Sequence[S]]], figures: Mapping[str, Callable[[S], str]]
) -> Table | None:
    """A row for each operation and axis. ranks: of each rank its number and what it sends.
    figures: heading of a column -> what is written there. None where nothing is sent."""
    groups = grouped(((rank, sent) for rank, sent in ranks if sent), lambda one: one[1])
    if not groups:
        return None
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("ranks", "operation", "axis"):
        table.add_column(heading)
    for heading in figures:
        table.add_column(heading, justify="right")
    for sent, alike in groups.items():
        numbers = ranges(rank for rank, _ in alike)
        for place, one in enumerate(sent):
            written = (write(one) for write in figures.values())
            table.add_row("" if place else numbers, one.op, one.axis, *written)
    return table
