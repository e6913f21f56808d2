"""Tables that `orchestrator export` wrote, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from orchestrator.errors import UserError
from orchestrator.store.arrow_files import OtherVersion
from orchestrator.store.names import FORMULA
from workers.rows import SCHEMA_VERSION

SUFFIXES = (".parquet", ".arrow", ".csv")


def exported(path: Path) -> list[Path]:
    """The tables at `path`: the file itself, or those in the folder."""
    if path.is_dir():
        return sorted(one for one in path.iterdir() if one.suffix in SUFFIXES)
    return [path]


def read_table(path: Path, schemas: Mapping[str, pa.Schema]) -> pa.Table:
    """One table. schemas: by its name, the types that a CSV file does not have.

    Raises UserError where it cannot be read, is of another schema version, or is a CSV file of a
    table that is not in `schemas`.
    """
    try:
        table = _read(path, schemas.get(path.stem))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    found = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise OtherVersion(path, found)
    return table


def _read(path: Path, schema: pa.Schema | None) -> pa.Table:
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path)
    if path.suffix == ".arrow":
        return pa.feather.read_table(str(path), memory_map=False)
    if schema is None:
        raise ValueError("its columns have no types; export as parquet or arrow")
    return _from_csv(path, schema)


def _from_csv(path: Path, schema: pa.Schema) -> pa.Table:
    """See `export.write_tables` for how lists and texts are written. A CSV file does not say its
    schema version: its columns must be those of this one."""
    texts = {name: pa.string() for name in schema.names}
    options = pa.csv.ConvertOptions(
        column_types=texts, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    table = pa.csv.read_csv(path, convert_options=options)
    unknown = [name for name in table.column_names if name not in schema.names]
    if unknown:
        raise ValueError(f"it has the unknown column '{unknown[0]}'")
    fields = [schema.field(name) for name in table.column_names]
    arrays = [_typed(table.column(field.name), field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=schema.metadata))


def _typed(column: pa.ChunkedArray, type_: pa.DataType) -> Any:
    if pa.types.is_list(type_):
        values = [None if one is None else json.loads(one) for one in column.to_pylist()]
        return pa.array(values, type=type_)
    if pa.types.is_string(type_):
        plain = [_plain(one) for one in column.to_pylist()]
        return pa.array(plain, type=type_)
    return column.cast(type_)


def _plain(text: str | None) -> str | None:
    """A text without the apostrophe that keeps a spreadsheet from computing it."""
    quoted = text is not None and text.startswith("'") and text[1:].startswith(FORMULA)
    return text[1:] if quoted and text is not None else text
