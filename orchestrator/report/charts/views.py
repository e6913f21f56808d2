"""What the rows of all charts share: what the page selects them by, and how numbers are cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.analysis.comparing.rounds import names_of
from orchestrator.store.schema import CELL_KEYS, CellKey, places
from workers.rows import grouped

DIGITS = 5
Names = Mapping[CellKey, str]  # cell -> what its layout is called


@dataclass(frozen=True)
class View:
    """What the page selects a row of a chart by."""

    experiment: str
    scenario: str
    concurrency: int
    layout: str


def view(cell: CellKey, names: Names) -> View:
    """What a cell is selected by."""
    return View(cell.experiment, cell.scenario, cell.max_concurrency, names[cell])


def layout_names(cells: Iterable[CellKey]) -> dict[CellKey, str]:
    """Cell -> what its layout is called: the strategy, with engine and dtype only where these
    differ within a model."""
    models = grouped(cells, lambda cell: cell.model).values()
    return {
        cell: name for peers in models for cell, name in zip(peers, names_of(peers), strict=True)
    }


def natural(name: str) -> list[int | str]:
    """A sorting key that puts tp2 before tp10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def by_cell(table: pa.Table) -> dict[CellKey, np.ndarray]:
    """Cell -> the places of its rows in a table that begins with the columns of a cell's key."""
    return places(table, CELL_KEYS)


def first_start(table: pa.Table) -> dict[CellKey, np.ndarray]:
    """The same as `by_cell`, of the first start of each cell alone: spans of two starts are on
    clocks of their own."""
    starts = np.asarray(table.column("start"))
    return {
        cell: places[starts[places] == starts[places].min()]
        for cell, places in by_cell(table).items()
    }


def rounded(value: float | None) -> float | None:
    """Rounded to five digits, to make the page smaller. No measured value is more precise. NaN
    becomes None."""
    return None if value is None or value != value else float(f"{value:.{DIGITS}g}")


def compact(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """All of `values`, rounded."""
    return [rounded(float(value)) for value in values]
