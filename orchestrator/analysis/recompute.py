"""What was kept of observed runs, worked out again from their spans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from orchestrator.analysis.observed.accounting import (
    CELL_PARTS,
    CELL_TIMED,
    PARTS_OF_STEP,
    TIMED,
    CellParts,
    CellTimed,
    account,
)
from orchestrator.errors import UserError
from orchestrator.store import folders
from orchestrator.store.schema import START_KEYS, StartKey, places
from orchestrator.store.store import Store
from strategies.placement import Placement
from workers.records import SPANS
from workers.rows import Table, column, grouped, row, widened

EQUAL, DIFFERENT, EXCERPT, NO_SPANS, NO_MESH = (
    "equal",
    "different",
    "an excerpt of its spans was kept",
    "its spans are not there",
    "its mesh is not in manifest.json",
)
ROUNDING = 1e-9  # of a value, or of 1 where that is greater
# What needs more than spans: the same work served without a probe, what was kept of it, and
# attention by itself.
LEFT_OUT = frozenset(
    {"timed_step_ms", "profile_ratio", "whole", "attention_ms", "attention_tflops"}
)
PARTS_KEY, TIMED_KEY = ("rank", "phase"), ("rank", "phase", "op", "axis")

R = TypeVar("R")
K = TypeVar("K", bound=StartKey)


@row
class Recomputed(StartKey):
    """What became of one observed cell of one start."""

    status: str = column("equal or different; else why it cannot be worked out again")
    difference: float | None = column(
        "the largest difference of a column; null where a row or a value is there once only",
        "of its unit",
    )
    where: str | None = column("the table, row and column of it; null where all are equal")


RECOMPUTED = Table("recomputed", Recomputed)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a value that was kept is from the one worked out again; None: one of them is not
    there."""

    size: float | None
    where: str

    @property
    def order(self) -> float:
        """The greater, the worse."""
        return float("inf") if self.size is None else self.size


def of_folder(path: Path) -> list[Recomputed]:
    """Every observed cell and start of the results at or below `path`.

    Raises UserError where there are no results, those of another schema version, or none of which
    all spans were kept.
    """
    found: list[Recomputed] = []
    for folder in folders.find(path):
        folders.check_version(folder)
        found += _of_store(Store(folder))
    if not found:
        raise UserError(
            f"{path} holds nothing that can be recomputed: none of its cells was observed, or it "
            "trained: no spans are kept of training"
        )
    if not any(one.status in (EQUAL, DIFFERENT) for one in found):
        raise UserError(
            f"nothing in {path} can be recomputed. Of its {len(found)} observed cells: "
            f"{'; '.join(dict.fromkeys(one.status for one in found))}. "
            "`orchestrator submit --save-spans` keeps all spans"
        )
    return sorted(found, key=_place)


def _place(one: StartKey) -> tuple[object, ...]:
    return (
        one.cell.strategy,
        one.cell.engine,
        one.cell.scenario,
        one.cell.max_concurrency,
        one.start,
    )


def _of_store(store: Store) -> Iterator[Recomputed]:
    spans, meshes = store.read(SPANS.name), store.manifest().get("meshes", {})
    chosen = {} if spans is None else places(spans, START_KEYS)
    timed = _by_start(store, CELL_TIMED)
    for start, parts in _by_start(store, CELL_PARTS).items():
        mine = spans.take(chosen[start]) if spans is not None and start in chosen else None
        yield _recomputed(start, mine, parts, timed.get(start, ()), meshes)


def _by_start(store: Store, table: Table[K]) -> dict[StartKey, list[K]]:
    kept = store.read(table.name)
    rows = [] if kept is None else table.rows(kept)
    return grouped(rows, lambda one: StartKey(cell=one.cell, start=one.start))


def _recomputed(
    start: StartKey,
    spans: pa.Table | None,
    parts: Sequence[CellParts],
    timed: Sequence[CellTimed],
    meshes: Mapping[str, Any],
) -> Recomputed:
    mesh = meshes.get(start.cell.strategy)
    if not all(one.whole for one in parts):
        return _said(start, EXCERPT)
    if spans is None:
        return _said(start, NO_SPANS)
    if mesh is None:
        return _said(start, NO_MESH)
    placement = Placement(mesh=tuple((axis, degree) for axis, degree in mesh))
    differences = list(recompute(spans, parts, timed, placement))
    if not differences:
        return _said(start, EQUAL)
    worst = max(differences, key=lambda one: one.order)
    return widened(Recomputed, start, status=DIFFERENT, difference=worst.size, where=worst.where)


def _said(start: StartKey, status: str) -> Recomputed:
    return widened(Recomputed, start, status=status, difference=None, where=None)


def recompute(
    spans: pa.Table, parts: Sequence[CellParts], timed: Sequence[CellTimed], placement: Placement
) -> Iterator[Difference]:
    """Where `account` of all spans of one observed run differs from what was kept of it.

    placement: its mesh alone is looked at.
    """
    seen = set(spans["rank"].to_pylist())
    unseen = {one.rank: one.reason for one in parts if one.rank not in seen and one.reason}
    again = account(spans, placement, unseen=unseen)
    yield from _differences(PARTS_OF_STEP, parts, again, PARTS_KEY)
    yield from _differences(TIMED, timed, again, TIMED_KEY)


def _differences(
    table: Table[R], kept: Iterable[object], again: Mapping[str, pa.Table], key: Sequence[str]
) -> Iterator[Difference]:
    names = [one.name for one in table.columns if one.name not in LEFT_OUT]

    def by_key(rows: Iterable[object]) -> dict[tuple[object, ...], object]:
        return {tuple(getattr(one, name) for name in key): one for one in rows}

    before, after = by_key(kept), by_key(table.rows(again[table.name]))
    for where in dict.fromkeys((*before, *after)):
        said = f"{table.name} of rank {' '.join(map(str, where))}"
        if where not in before or where not in after:
            yield Difference(None, said)
            continue
        for name in names:
            size = _apart(getattr(before[where], name), getattr(after[where], name))
            if size != 0:
                yield Difference(size, f"{name} in {said}")


def _apart(before: object, after: object) -> float | None:
    """How far two values are apart: 0 up to rounding, None where they are no two numbers and not
    the same."""
    if before == after:
        return 0.0
    if not isinstance(before, (int, float)) or not isinstance(after, (int, float)):
        return None
    size = abs(before - after)
    return 0.0 if size <= ROUNDING * max(1.0, abs(before), abs(after)) else float(size)
