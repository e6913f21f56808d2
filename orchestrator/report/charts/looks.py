"""How a layout is drawn: its colour, its mark and its dash.

Colour and mark follow from the layout alone, and the dash from its engine, so that it looks the
same on every page. Layouts that share a mark there get a dash of their own, so that mark and dash
tell all of them apart without any colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from orchestrator.report.charts.views import natural

# Axes of a layout -> the hue of it, a name in the style sheet, and the mark of its points.
HUES: Mapping[str, tuple[str, str]] = {
    "": ("single", "triangle-left"),
    "tp": ("tp", "circle"),
    "pp": ("pp", "square"),
    "dp": ("dp", "triangle-up"),
    "pp tp": ("tp-pp", "diamond"),
    "dp tp": ("tp-dp", "triangle-down"),
    "dp pp": ("pp-dp", "cross"),
    "dp pp tp": ("tp-pp-dp", "triangle-right"),
}
OTHER = ("other", "triangle-left")
SHADES = 3  # of a hue: by the degree of the first axis, as tp2, tp4 and tp8 stand side by side
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 3), (9, 3, 2, 3), (14, 4), (4, 4), (1, 5))
ENGINES = {"torch": 0, "vllm": 1, "transformers": 2, "deepspeed": 3}  # engine -> its dash


D = TypeVar("D", bound="Drawn")


@dataclass(frozen=True, slots=True)
class Look:
    """A layout as it is drawn. colour: a variable of the style sheet, without its dashes. dash:
    lengths of strokes and gaps in px, none where the line is whole."""

    name: str
    colour: str
    shape: str
    dash: tuple[int, ...]


class Drawn(Protocol):
    """What a look follows from: a cell, of one result or of two."""

    @property
    def strategy(self) -> str:
        """Its layout, such as `tp2pp2`."""
        ...

    @property
    def engine(self) -> str:
        """What executes it."""
        ...


def looks(names: Mapping[D, str]) -> list[Look]:
    """One for each name, in natural order. names: of the layout of each cell."""
    cells = {name: cell for cell, name in names.items()}
    found: list[Look] = []
    for name in sorted(cells, key=natural):
        colour, shape = colour_of(cells[name].strategy)
        taken = {one.dash for one in found if one.shape == shape}
        found.append(Look(name, colour, shape, _dash(cells[name].engine, taken)))
    return found


def colour_of(strategy: str) -> tuple[str, str]:
    """The colour and the mark of a layout such as `tp2pp2`."""
    parts = [(axis, int(number)) for axis, number in re.findall(r"([a-z]+)(\d+)", strategy)]
    cut = [(axis, number) for axis, number in parts if number > 1]
    hue, shape = HUES.get(" ".join(sorted(axis for axis, _ in cut)), OTHER)
    first = cut[0][1] if cut else 2
    return f"{hue}-{(first.bit_length() - 2) % SHADES}", shape


def _dash(engine: str, taken: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """That of an engine, or the next one that no layout with the same mark on the page has, as
    where two differ in their degrees or their dtype alone."""
    first = ENGINES.get(engine, len(ENGINES))
    free = [dash for dash in (*DASHES[first:], *DASHES[:first]) if dash not in set(taken)]
    return free[0] if free else DASHES[first]
