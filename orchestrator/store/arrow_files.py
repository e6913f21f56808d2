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
# Of columns that take less, a compressed file is no smaller, and thirty times slower to read.
LEAST_BYTES = 256


def write_part(path: Path, table: pa.Table) -> Path:
    """Write an Arrow IPC file that is there whole or not at all."""
    return replace_file(path, lambda temporary: write_arrow(temporary, table))


def write_arrow(path: Path, table: pa.Table) -> None:
    """Fill the file at `path`, compressed where its columns are worth it. Raises OSError where the
    disk is full."""
    is_worth_it = table.nbytes >= LEAST_BYTES * table.num_columns
    codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL) if is_worth_it else None
    packed = pa.ipc.IpcWriteOptions(compression=codec)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=packed) as writer,
    ):
        writer.write_table(table)


def read_part(path: Path, only: str | None = None) -> pa.Table | None:
    """A part in memory, None where it is missing, cut short or no Arrow file. See `parsed`."""
    try:
        return parsed(path.read_bytes(), path, only)
    except (OSError, Unreadable):
        return None


def parsed(content: bytes, path: Path, only: str | None = None) -> pa.Table:
    """The table in the content of the file at `path`, every value of it checked to be one of its
    type: Arrow itself would follow a damaged offset anywhere.

    only: the one column that is read. Raises Unreadable, and UserError for another schema version.
    """
    try:
        fields = None if only is None else [_open(content).schema.names.index(only)]
        table = _open(content, included_fields=fields).read_all()
        table.validate(full=True)
        found = (table.schema.metadata or {}).get(b"schema_version", b"0").decode()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Unreadable(" ".join(str(error).split())) from error
    if found != str(SCHEMA_VERSION):
        raise OtherVersion(path, found)
    return decoded(table)


def _open(content: bytes, **options: Any) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.BufferReader(content), options=pa.ipc.IpcReadOptions(**options))


class Unreadable(ValueError):
    """What is no Arrow file, or a damaged one."""


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


def replace_file(
    path: Path, write: Callable[[Path], Any], announce: Callable[[Path], object] = lambda _: None
) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in its place.

    The content and its name are on disk when this returns: both survive a power cut. announce: is
    given the temporary file once that is on disk, before it is put in its place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        announce(temporary)
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
