"""Schemas of what a rank reports (pyarrow only). Every numeric field carries its unit in its metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1


def column(name: str, kind: pa.DataType, unit: str | None = None) -> pa.Field:
    """A nullable field, with `unit` in its metadata."""
    return pa.field(name, kind, metadata={"unit": unit} if unit else None)


def table_schema(name: str, fields: Iterable[pa.Field]) -> pa.Schema:
    """A schema that knows its table's name and its version."""
    return pa.schema(list(fields), metadata={"table": name, "schema_version": str(SCHEMA_VERSION)})


# One row per request. Times are seconds since the start of the run on the reporting rank's clock.
REQUESTS = table_schema("requests", [
    column("request_index", pa.int32(), "1"),
    column("replica", pa.int32(), "1"),
    column("input_len", pa.int32(), "tokens"),
    column("output_len", pa.int32(), "tokens"),
    column("arrival_s", pa.float64(), "s"),
    column("token_times_s", pa.list_(pa.float64()), "s"),
    column("output_token_ids", pa.list_(pa.int32()), "1"),
])

# One row per engine step (one micro-batch through this rank's stage) and rank.
STEPS = table_schema("steps", [
    column("rank", pa.int32(), "1"),
    column("step", pa.int32(), "1"),
    column("phase", pa.string()),
    column("lane", pa.int32(), "1"),
    column("num_requests", pa.int32(), "1"),
    column("num_tokens", pa.int32(), "tokens"),
    column("end_s", pa.float64(), "s"),
])

# One row per (phase, operation, mesh axis) and rank. Bytes are message sizes as nccl-tests counts them, summed over calls.
COLLECTIVES = table_schema("collectives", [
    column("rank", pa.int32(), "1"),
    column("phase", pa.string()),
    column("op", pa.string()),
    column("axis", pa.string()),
    column("calls", pa.int64(), "1"),
    column("bytes", pa.int64(), "B"),
])


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
