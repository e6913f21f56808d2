"""Tables of a few rows for tests: columns that a test does not name are null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pyarrow as pa

from workers.rows import Column, Table, columns, made

R = TypeVar("R")


def make(table: Table[R], rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Rows by column name as an Arrow table. Raises ValueError for a column that is not there."""
    kept = [dict(row) for row in rows]
    unknown = {name for row in kept for name in row} - {one.name for one in columns(table.kind)}
    if unknown:
        raise ValueError(f"the table {table.name} has no column {', '.join(sorted(unknown))}")
    return pa.Table.from_pylist(kept, schema=table.schema)


def from_flat(kind: type[R], values: Mapping[str, object]) -> R:
    """A row from its columns by name: what `flat` has taken apart.

    Raises TypeError for a column that the row type does not have, or one that is not given.
    """
    known = {column.name for column in columns(kind)}
    strange, left_out = values.keys() - known, known - values.keys()
    if strange or left_out:
        said = [f"no column {name}" for name in sorted(strange)]
        said += [f"{name} is not given" for name in sorted(left_out)]
        raise TypeError(f"{kind.__name__}: {', '.join(said)}")
    return made(kind, lambda column: _held(column, values[column.name]))


def _held(column: Column, value: Any) -> Any:
    """The value as it is once a table has held it."""
    if isinstance(value, list):
        return tuple(value)
    is_whole = pa.types.is_floating(column.type) and isinstance(value, int)
    return float(value) if is_whole else value
