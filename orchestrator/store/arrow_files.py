"""Arrow files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.errors import UserError
from workers.rows import SCHEMA_VERSION

DO_WITH_OTHERS = "give another --result-dir, or read it with the release that wrote it"
ZSTD_LEVEL = 12  # higher ones take twice as long for 1% less


def write_part(path: Path, table: pa.Table) -> Path:
    """Write an Arrow IPC file, compressed, that is there whole or not at all."""
    codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
    packed = pa.ipc.IpcWriteOptions(compression=codec)

    def write(temporary: Path) -> None:
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema, options=packed) as writer,
        ):
            writer.write_table(table)

    return replace_file(path, write)


def read_part(path: Path, only: str | None = None) -> pa.Table | None:
    """A part in memory, None where it is missing, cut short or no Arrow file.

    only: the one column that is read. Raises UserError for another schema version.
    """
    try:
        with pa.OSFile(str(path), "rb") as source:
            fields = None if only is None else [pa.ipc.open_file(source).schema.names.index(only)]
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            table = pa.ipc.open_file(source, options=options).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    found = (table.schema.metadata or {}).get(b"schema_version", b"0").decode()
    if found != str(SCHEMA_VERSION):
        raise OtherVersion(path, found)
    return decoded(table)


def encoded(table: pa.Table) -> pa.Table:
    """`table` with its texts as dictionaries: a name that stands in every row is stored once."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(index).dictionary_encode()
            table = table.set_column(index, field.with_type(column.type), column)
    return table


def decoded(table: pa.Table) -> pa.Table:
    """`table` with plain texts, however they were stored."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.with_type(column.type), column)
    return table


def concat(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    """Tables one after another, None where there are none.

    A column that only some of them have is null in the others.
    """
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found, promote_options="default") if found else None


class OtherVersion(UserError):
    """A file or a folder of another schema version, which this version cannot read."""

    def __init__(
        self, path: Path, found: object, what: str = "results", do: str = DO_WITH_OTHERS
    ) -> None:
        super().__init__(
            f"{path} holds {what} of schema version {found}, this orchestrator reads and writes "
            f"version {SCHEMA_VERSION}; {do}"
        )
        self.found = found


def replace_file(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in its place.

    The content and its name are on disk when this returns: both survive a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
