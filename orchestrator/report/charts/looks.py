"""How a layout is drawn: its colour, its mark and its dash; and what its name says.

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

# Axis of a layout -> what its number says, for somebody who meets the name for the first time.
AXES = {
    "tp": "Tensor parallel: every layer is cut over so many devices, which sum up their results.",
    "pp": "Pipeline parallel: so many stages, each of some of the layers, on devices of their own. "
    "The work passes through them in micro-batches.",
    "dp": "Data parallel: so many whole copies of the model, each with a share of the work.",
    "fsdp": "Fully sharded: as dp, but each keeps a part alone and gathers a layer to use it.",
    "zero": "ZeRO, at this stage: as dp, with what each would keep shared out.",
}

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


@dataclass(frozen=True, slots=True)
class Planned:
    """A layout that was not run."""

    strategy: str
    engine: str


def planned_looks(strategies: Iterable[str], engine: str) -> list[Look]:
    """Those of layouts that were not run, under one engine."""
    return looks({Planned(strategy, engine): strategy for strategy in strategies})


def colour_of(strategy: str) -> tuple[str, str]:
    """The colour and the mark of a layout such as `tp2pp2`."""
    parts = [(axis, int(number)) for axis, number in re.findall(r"([a-z]+)(\d+)", strategy)]
    cut = [(axis, number) for axis, number in parts if number > 1]
    hue, shape = HUES.get(" ".join(sorted(axis for axis, _ in cut)), OTHER)
    first = cut[0][1] if cut else 2
    return f"{hue}-{(first.bit_length() - 2) % SHADES}", shape


def axes_in_words(strategies: Iterable[str]) -> dict[str, str]:
    """What the parts of the names of layouts mean: axis -> a sentence."""
    found = {axis for strategy in strategies for axis in re.findall(r"[a-z]+", strategy)}
    return {axis: words for axis, words in AXES.items() if axis in found}


def _dash(engine: str, taken: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """That of an engine, or the next one that no layout with the same mark on the page has, as
    where two differ in their degrees or their dtype alone."""
    first = ENGINES.get(engine, len(ENGINES))
    free = [dash for dash in (*DASHES[first:], *DASHES[:first]) if dash not in set(taken)]
    return free[0] if free else DASHES[first]
