"""Packed results of one experiment that were made apart, as on two nodes, put together. What the
experiment asked for is in its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.errors import UserError
from orchestrator.store.arrow_files import concat
from orchestrator.store.identity import decisive_of
from orchestrator.store.schema import OUTCOME_TABLES, START_KEYS, StartKey, places

Manifest = Mapping[str, Any]
# Fields of a manifest in which both results are told; the others are those of the first.
OF_BOTH = ("experiment", "cells", "asked", "meshes", "engine_settings")


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed results. name: of their folder. tables: as the runs wrote them."""

    name: str
    tables: Mapping[str, pa.Table]
    manifest: Manifest

    @property
    def blocks(self) -> Sequence[Mapping[str, Any]]:
        """When and where each command ran; nothing of one that the manifest does not tell of."""
        told, made = self.manifest.get("blocks") or [], _blocks_of(self.tables).values()
        lost = 1 + max((number for numbers in made for number in numbers), default=-1) - len(told)
        return [*told, *({} for _ in range(lost))]


def pooled(packs: Sequence[Packed]) -> Packed:
    """All of them. What is in two is taken once. The starts of commands that an earlier one has not
    get the numbers behind those that are there, and so have their blocks and nodes.

    Raises UserError where they are of other software or devices.
    """
    first, *others = packs
    for other in others:
        _check(first, other)
        first = _together(first, other)
    return first


def _check(one: Packed, other: Packed) -> None:
    mine, theirs = decisive_of(one.manifest), decisive_of(other.manifest)
    if changed := [name for name in mine if name in theirs and mine[name] != theirs[name]]:
        said = ", ".join(f"{name} {mine[name]} and {theirs[name]}" for name in changed)
        raise UserError(f"{one.name} and {other.name} have {said}; they cannot be put together")


def _together(one: Packed, other: Packed) -> Packed:
    blocks, nodes = _numbers(one.blocks, other.blocks)
    made = _blocks_of(other.tables)
    known = {number for number, new in enumerate(blocks) if new < len(one.blocks)}
    there, old = set(_blocks_of(one.tables)), {key for key in made if made[key] <= known}
    fresh = [key for key in made if key not in old]
    behind = next(n for n in range(len(there) + 1) if there.isdisjoint(_moved(fresh, n)))
    numbers = {key: key.start for key in old - there} | {key: key.start + behind for key in fresh}
    tables = {}
    for name in dict.fromkeys((*one.tables, *other.tables)):
        added = _renumbered(other.tables.get(name), numbers)
        if added is not None and name in OUTCOME_TABLES:
            added = _mapped(_mapped(added, "block", blocks), "node", nodes)
        whole = concat(table for table in (one.tables.get(name), added) if table is not None)
        assert whole is not None
        tables[name] = whole
    joined = [
        {**block, "node": nodes.get(block.get("node") or 0)}
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
    block is known by when and where it ran, a node by its GPUs, or its CPU."""
    known = {(one.get("started_at"), _place(one)): number for number, one in enumerate(mine)}
    there = {_place(one): one.get("node") or 0 for one in mine}
    blocks, nodes, following = [], dict[int, int](), len(mine)
    for one in theirs:
        place = _place(one)
        found = known.get((one.get("started_at"), place)) if place else None
        blocks.append(following if found is None else found)
        following += found is None
        another = 1 + max(there.values(), default=-1)
        nodes[one.get("node") or 0] = there.setdefault(place, another) if place else another
    return blocks, nodes


def _place(block: Mapping[str, Any]) -> tuple[str, ...]:
    """Where it ran; () if it does not say."""
    cpu = block.get("cpu_model")
    return tuple(sorted(block.get("gpu_uuids") or ())) or ((cpu,) if cpu else ())


def _blocks_of(tables: Mapping[str, pa.Table]) -> dict[StartKey, set[int]]:
    """Of each start the commands that made its runs."""
    found = dict[StartKey, set[int]]()
    for table in (tables[name] for name in OUTCOME_TABLES if name in tables):
        blocks = np.asarray(table.column("block"))
        for key, rows in places(table, START_KEYS).items():
            found.setdefault(key, set()).update(blocks[rows].tolist())
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
