"""Tables for the rest of the world: one file each, in a format that other tools read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from orchestrator.errors import UserError
from orchestrator.store.arrow_files import encoded, replace_file, write_arrow
from orchestrator.store.folders import MANIFEST
from orchestrator.store.journal import Journal
from orchestrator.store.names import cell, safe_name
from orchestrator.store.schema import OUTCOME_TABLES, RUN_KEYS, START_KEYS, places
from orchestrator.store.store import OF_STARTS, Store

FORMATS = ("arrow", "parquet", "csv")


def check_format(format: str, known: Sequence[str] = FORMATS) -> None:
    """Raise UserError for a format that is not written here. known: those that may be asked for."""
    if format not in FORMATS:
        raise UserError(f"there is no format '{format}'; use {', '.join(known)}")


def write_tables(tables: Mapping[str, pa.Table], format: str, out: Path) -> list[Path]:
    """Write each table to `out`/<name>.<format>; in CSV lists become JSON text, and a text
    that a spreadsheet would compute gets an apostrophe (`names.cell`).

    Returns the files written. Raises UserError for another format, or where `out` cannot be
    written.
    """
    check_format(format)
    with _in_folder(out):
        return [
            replace_file(out / f"{name}.{format}", partial(_write_as, format, table))
            for name, table in tables.items()
        ]


def pack(tables: Mapping[str, pa.Table], manifest: str, out: Path) -> list[Path]:
    """Write whole results to `out`: one Arrow file a table, manifest.json and their checksums.

    Such a folder is read like the one it was made of. The summary comes last and makes it results:
    what a crash left behind holds none. Returns the files written. Raises UserError where `out`
    holds something already or cannot be written.
    """
    with _in_new_folder(out, "--out"):
        journal = Journal(out)
        journal.write(out / MANIFEST, lambda path: path.write_text(manifest))
        names = sorted(tables, key=lambda name: name in OUTCOME_TABLES)
        parts = [
            journal.write(out / f"{name}.arrow", partial(write_arrow, table=encoded(tables[name])))
            for name in names
        ]
        return [journal.path, out / MANIFEST, *parts]


def unpack(tables: Mapping[str, pa.Table], manifest: str, out: Path) -> Path:
    """Write whole results to `out` as a folder to which runs can be added: a file a run and table.

    Returns `out`. Raises UserError where `out` holds something already or cannot be written.
    """
    with _in_new_folder(out, "--result-dir"):
        Store(out).create()
        journal = Journal(out)
        journal.write(out / MANIFEST, lambda path: path.write_text(manifest))
        for name in sorted(tables, key=lambda name: name in OUTCOME_TABLES):
            for part, rows in _parts(name, tables[name]):
                path = out / name / f"{safe_name(part)}.arrow"
                journal.write(path, partial(write_arrow, table=rows))
    return out


def _parts(name: str, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """What each part of a table is called, and its rows. A table of none keeps its columns: that
    nothing was sent is not the same as that nothing was counted."""
    if not table.num_rows:
        yield name, table
    if any(name in tables for tables in OF_STARTS):
        for start, rows in places(table, START_KEYS).items():
            yield start.name, table.take(rows)
    else:
        for run, rows in places(table, RUN_KEYS).items():
            yield run.name, table.take(rows)


@contextmanager
def _in_new_folder(out: Path, flag: str) -> Iterator[None]:
    """See `_in_folder`; one that holds something is refused."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give another {flag}")
    with _in_folder(out, flag):
        yield


@contextmanager
def _in_folder(out: Path, flag: str = "--out") -> Iterator[None]:
    """Make the folder, and say what is in the way where something in it cannot be written. flag:
    what names another one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"tables cannot be written to {out}: {reason}; give another {flag}") from (
            error
        )


def _write_as(format: str, table: pa.Table, path: Path) -> None:
    if format == "parquet":
        pa.parquet.write_table(table, path)
    elif format == "arrow":
        pa.feather.write_feather(table, str(path), compression="uncompressed")
    else:
        pa.csv.write_csv(_as_cells(table), path)


def _as_cells(table: pa.Table) -> pa.Table:
    """`table` with its lists and texts as cells of CSV."""
    for index, field in enumerate(table.schema):
        write = json.dumps if pa.types.is_list(field.type) else cell
        if pa.types.is_list(field.type) or pa.types.is_string(field.type):
            values = table.column(index).to_pylist()
            texts = [None if value is None else write(value) for value in values]
            table = table.set_column(index, field.name, pa.array(texts, type=pa.string()))
    return table
