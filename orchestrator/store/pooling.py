"""Packed results of one experiment that were made apart, as on two nodes, put together. What the
experiment asked for is in its name."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import UserError
from orchestrator.store.arrow_files import concat
from orchestrator.store.identity import changed, decisive_of, switches_told
from orchestrator.store.manifest import runs_asked
from orchestrator.store.node_id import NodeId, found_among, next_number, number_of
from orchestrator.store.schema import OUTCOME_TABLES, RUN_KEYS, START_KEYS, StartKey, places
from workers.rows import grouped

Manifest = Mapping[str, Any]
StartRuns = set[tuple[int, int]]  # of each the number of a start, and of a run in it
# Fields of a manifest by the names of cells or deployments.
OF_CELLS = ("cells", "asked", "engine_settings")
# Fields in which both results are told; the others are those of the first.
OF_BOTH = ("experiment", "meshes", *OF_CELLS)


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed results. name: of their folder. tables: as the runs wrote them."""

    name: str
    tables: Mapping[str, pa.Table]
    manifest: Manifest

    @property
    def outcomes(self) -> Sequence[pa.Table]:
        """The tables with a row for each run."""
        return [self.tables[name] for name in OUTCOME_TABLES if name in self.tables]

    @property
    def blocks(self) -> Sequence[Mapping[str, Any]]:
        """When and where each command ran; nothing of one that the manifest does not tell of."""
        told = self.manifest.get("blocks") or []
        made = (pc.max(table.column("block")).as_py() for table in self.outcomes if table.num_rows)
        lost = 1 + max(made, default=-1) - len(told)
        return [*told, *({} for _ in range(lost))]


def only(pack: Packed, wanted: Mapping[str, Collection[str]]) -> Packed:
    """Its runs that `wanted` names. wanted: of a key of runs, as engine, the names to take; all of
    them where there are none. Raises UserError where a key leaves no run."""
    for key, names in wanted.items():
        pack = _only(pack, key, names) if names else pack
    return pack


def _only(pack: Packed, key: str, wanted: Collection[str]) -> Packed:
    made = {name for table in pack.outcomes for name in table.column(key).to_pylist()}
    if made.isdisjoint(wanted):
        asked, has = (", ".join(sorted(names)) or "none" for names in (wanted, made))
        raise UserError(f"{pack.name} has no runs of {key} {asked}; it has {has}")
    names = pa.array(sorted(wanted))
    tables = {
        name: table.filter(pc.is_in(table.column(key), names))
        for name, table in pack.tables.items()
    }
    others = [f".{name}." for name in made.difference(wanted)]
    asked_of = {
        name: _without(pack.manifest[name], others) for name in OF_CELLS if name in pack.manifest
    }
    return replace(pack, tables=tables, manifest={**pack.manifest, **asked_of})


def _without(names: Any, parts: Sequence[str]) -> Any:
    """A list, or a mapping, without the names that hold one of `parts`."""
    kept = [name for name in names if not any(part in f"{name}." for part in parts)]
    return {name: names[name] for name in kept} if isinstance(names, Mapping) else kept


def pooled(packs: Sequence[Packed]) -> Packed:
    """All of them. A start that is in two is taken once. Starts that an earlier one has not get
    numbers behind those that are there where theirs are taken, and so do their blocks and nodes.
    A cell that lacks nothing in its own result, or has as many runs in all of them as were asked
    for, asks for nothing more: the numbers of its starts are others now.

    Raises UserError where they are of other software or devices.
    """
    first, *others = map(_settled, packs) if len(packs) > 1 else packs
    for other in others:
        _check(first, other)
        first = _together(first, other)
    return _settled(first, _has_as_many) if others else first


def _has_these(wanted: StartRuns, there: StartRuns) -> bool:
    return wanted <= there


def _has_as_many(wanted: StartRuns, there: StartRuns) -> bool:
    """As many starts, with as many runs each, whatever their numbers are."""
    asked, made = (
        sorted(Counter(start for start, _ in pairs).values(), reverse=True)
        for pairs in (wanted, there)
    )
    return len(asked) <= len(made) and all(map(operator.le, asked, made))


def _settled(pack: Packed, has: Callable[[StartRuns, StartRuns], bool] = _has_these) -> Packed:
    """Without what is asked of cells that have the runs. has: whether they do."""
    made = dict[str, StartRuns]()
    for key in (key for table in pack.outcomes for key in RUN_KEYS.rows(table)):
        made.setdefault(key.cell.name, set()).add((key.start, key.run))
    asked = {}
    for cell, pairs in (pack.manifest.get("asked") or {}).items():
        if not has(runs_asked(pack.manifest, cell), made.get(cell, set())):
            asked[cell] = pairs
    return replace(pack, manifest={**pack.manifest, "asked": asked})


def _check(one: Packed, other: Packed) -> None:
    _refuse(one, other, decisive_of(one.manifest), decisive_of(other.manifest))
    there, added = (switches_told(each.tables.get("summary")) for each in (one, other))
    for by in (by for by in there if by in added):
        of, advice = f" in runs of {by[0]} by {by[1]}", "; --engine and --strategy take some alone"
        _refuse(one, other, there[by], added[by], of, advice)


def _refuse(one: Packed, other: Packed, mine: Manifest, theirs: Manifest, *more: str) -> None:
    """Raise UserError where they differ; `more`: of what, and what to do."""
    if names := changed(mine, theirs):
        said = ", ".join(f"{name} {mine[name]} and {theirs[name]}" for name in names)
        of, advice = more or ("", "")
        raise UserError(
            f"{one.name} and {other.name} have {said}{of}; they cannot be put together{advice}"
        )


def _together(one: Packed, other: Packed) -> Packed:
    blocks, nodes = _numbers(one.blocks, other.blocks)
    there, made = _begun(one, range(len(one.blocks))), _begun(other, blocks)
    known = {(key.cell, begun) for key, begun in there.items()}
    fresh = [key for key, begun in made.items() if (key.cell, begun) not in known]
    behind = next(n for n in range(len(there) + 1) if there.keys().isdisjoint(_moved(fresh, n)))
    numbers = {key: key.start + behind for key in fresh}
    tables = {}
    for name in dict.fromkeys((*one.tables, *other.tables)):
        added = _renumbered(other.tables.get(name), numbers)
        if added is not None and name in OUTCOME_TABLES:
            added = _mapped(_mapped(added, "block", blocks), "node", nodes)
        whole = concat(table for table in (one.tables.get(name), added) if table is not None)
        assert whole is not None
        tables[name] = whole
    joined = [
        {**block, "node": nodes[number_of(block)]}
        for block, new in zip(other.blocks, blocks, strict=True)
        if new >= len(one.blocks)
    ]
    mine, theirs = ({name: each.manifest.get(name) for name in OF_BOTH} for each in (one, other))
    both = {name: said for name, said in _joined(mine, theirs).items() if said is not None}
    manifest = {**one.manifest, **both, "blocks": [*one.blocks, *joined]}
    return replace(one, tables=tables, manifest=manifest)


def _numbers(
    mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[list[int], dict[int, int]]:
    """Of each block of theirs its number among all, and their nodes with the numbers among all. A
    block is known by when and where it ran."""
    known = {_when_and_where(one): number for number, one in enumerate(mine)}
    blocks, following = [], len(mine)
    for one in theirs:
        found = known.get(_when_and_where(one)) if NodeId.of(one).is_known else None
        blocks.append(following if found is None else found)
        following += found is None
    nodes, another = dict[int, int](), next_number(mine)
    for node, same in grouped(theirs, number_of).items():
        there = (found_among(NodeId.of(block), mine) for block in same)
        found = next((number for number in there if number is not None), None)
        nodes[node] = another if found is None else found
        another += found is None
    return blocks, nodes


def _when_and_where(block: Mapping[str, Any]) -> tuple[Any, NodeId]:
    return block.get("started_at"), NodeId.of(block)


def _begun(pack: Packed, blocks: Sequence[int]) -> dict[StartKey, tuple[str, int]]:
    """Of each start when its first run began, and in which block. blocks: their numbers by those
    that the tables have. With its cell that is what a start is known by."""
    found = dict[StartKey, tuple[str, int]]()
    for table in pack.outcomes:
        began, by = (table.column(name).to_pylist() for name in ("started_at", "block"))
        for key, rows in places(table, START_KEYS).items():
            first = min((began[row], blocks[by[row]]) for row in rows)
            found[key] = min(first, found.get(key, first))
    return found


def _moved(keys: Iterable[StartKey], by: int) -> set[StartKey]:
    return {replace(key, start=key.start + by) for key in keys}


def _renumbered(table: pa.Table | None, numbers: Mapping[StartKey, int]) -> pa.Table | None:
    """The rows of the starts that are in `numbers`, with those."""
    if table is None:
        return None
    kept = [
        (rows, numbers[key]) for key, rows in places(table, START_KEYS).items() if key in numbers
    ]
    if not kept:
        return None
    starts = np.concatenate([np.full(len(rows), number) for rows, number in kept])
    return _with(table.take(np.concatenate([rows for rows, _ in kept])), "start", starts)


def _mapped(table: pa.Table, name: str, numbers: Mapping[int, int] | Sequence[int]) -> pa.Table:
    if name not in table.column_names:
        return table
    values = [None if one is None else numbers[one] for one in table.column(name).to_pylist()]
    return _with(table, name, values)


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    place, field = table.column_names.index(name), table.schema.field(name)
    return table.set_column(place, field, pa.array(values, field.type))


def _joined(one: Any, other: Any) -> Any:
    """What both say: of mappings the fields of both, of lists what either has, else the first."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {**other, **{key: _joined(one[key], other.get(key)) for key in one}}
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *(item for item in other if item not in one)]
    return other if one is None else one
