"""Tables of a few rows for tests: columns that a test does not name are null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import pyarrow as pa

from workers.rows import Table, columns

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
    table: Table[R] = Table("", kind)
    (one,) = table.rows(make(table, [values]))
    return one
