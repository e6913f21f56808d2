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
