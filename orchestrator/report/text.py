"""Numbers as people read them, and the table of what ranks send. Every format for a figure is in
this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

EN_DASH = "\u2013"


def fixed(value: float | None, digits: int = 1) -> str:
    """With a fixed number of decimals, none from 1000 on: 9.5, 2111. "-" where it is unknown."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1, of: float = 100.0) -> str:
    """`value` as a share of `of`: 14.0%. "-" where it is unknown."""
    return "-" if value is None else f"{100.0 * value / of:.{digits}f}%"


def figure(value: float | None, unit: str = "") -> str:
    """With three digits or more: 2,111 or 211 or 21.1 or 2.11. Empty where it is unknown."""
    if not value:
        return "" if value is None else f"0{unit}"
    if abs(value) >= 100:
        return f"{value:,.0f}{unit}"
    return f"{value:.1f}{unit}" if abs(value) >= 10 else f"{value:.2f}{unit}"


def three_digits(value: float | None) -> str:
    """With three digits, or whole from 100 on: 0.0123, 2.11, 2111. "-" where it is unknown."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def aligned(value: float | None) -> str:
    """`three_digits` with their zeros, for columns of them: 0.730, 1.20, 2111."""
    if value is None or abs(value) >= 100:
        return three_digits(value)
    return f"{value:#.3g}".rstrip(".")


def ranges(numbers: Iterable[int], dash: str = "-") -> str:
    """Whole numbers, runs of them by their ends: 0, 1, 2, 5 is "0-2, 5"."""
    ends: list[tuple[int, int]] = []
    for one in sorted(numbers):
        first = ends.pop()[0] if ends and ends[-1][1] == one - 1 else one
        ends.append((first, one))
    return ", ".join(span(first, last, dash) for first, last in ends)


def span(first: int, last: int, dash: str = "-") -> str:
    """The whole numbers from `first` to `last`: "0-2", or "5" where they are the same."""
    return str(first) if first == last else f"{first}{dash}{last}"


def plural(count: int, noun: str) -> str:
    """1 rank, 2 ranks."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def full(sentence: str) -> str:
    """With a full stop."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def legend(meanings: Mapping[str, str]) -> Text:
    """What headings mean, as sentences of one paragraph."""
    from rich.text import Text

    said = [Text.assemble((name, "bold"), f": {full(one)}") for name, one in meanings.items()]
    return Text(" ", style="dim").join(said)


def stretch(bounds: tuple[int, int]) -> str:
    """[start, stop) by its first and its last number."""
    return span(bounds[0], bounds[1] - 1)


def part(bounds: tuple[int, int] | None, whole: int) -> str:
    """What [start, stop) is of `whole`; None: nothing."""
    if bounds is None:
        return "-"
    return "all" if bounds == (0, whole) else stretch(bounds)


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

    @property
    def bytes(self) -> int:
        """Of all its calls."""
        ...


S = TypeVar("S", bound=Sent)


def collectives_table(
    title: str, ranks: Iterable[tuple[int, Sequence[S]]], figures: Mapping[str, Callable[[S], str]]
) -> Table | None:
    """A row for each operation and axis. ranks: of each rank its number and what it sends.
    figures: heading of a column -> what is written there. None where nothing is sent."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    groups: dict[Sequence[S], list[int]] = {}
    for rank, sent in ranks:
        if sent:
            groups.setdefault(sent, []).append(rank)
    if not groups:
        return None
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("ranks", "operation", "axis"):
        table.add_column(heading)
    for heading in figures:
        table.add_column(heading, justify="right")
    for sent, alike in groups.items():
        for place, one in enumerate(sent):
            written = (write(one) for write in figures.values())
            table.add_row("" if place else ranges(alike), one.op, one.axis, *written)
    return table
