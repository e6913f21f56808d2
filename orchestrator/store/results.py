"""The run store: one folder an experiment, one Arrow file a run and table. Nothing is ever appended
to.

A part is written under a temporary name, synced and renamed, so it is there whole or not at all.
The summary part comes last and marks its run as done; whatever a crash left half-written is
ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from orchestrator.analysis.metrics import COMPLETED, INVALID, SUMMARY
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Experiment, Run, digest
from workers.records import SCHEMA_VERSION

TABLES = (
    "summary",
    "requests",
    "steps",
    "collectives",
    "parts",
    "timed_collectives",
    "spans",
    "telemetry",
)
MANIFEST = "manifest.json"
COMPARISON = "comparison.arrow"
FORMATS = ("arrow", "parquet", "csv")
DEFAULT_ROOT = Path("results")


def folder_of(experiment: Experiment) -> Path:
    """Where an experiment's results live: the same request, the same folder."""
    root = experiment.result_dir or DEFAULT_ROOT
    return root / f"{_safe(Path(experiment.model).name)}-{experiment.identity}"


class Store:
    """The results of one experiment under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def create(self) -> None:
        """Make the folder. Raises UserError if it holds results of another schema version or cannot
        be written."""
        check_version(self.folder)
        try:
            for table in TABLES:
                (self.folder / table).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"results cannot be written to {self.folder}: {error.strerror}; give another "
                "--result-dir"
            ) from error
        for leftover in self.folder.glob("**/.*.tmp"):
            leftover.unlink(missing_ok=True)

    # -- one run

    def write_run(
        self, run: Run, summary: Mapping[str, Any], tables: Mapping[str, pa.Table]
    ) -> None:
        """Keep a run: `tables` by name first, the summary last. What an earlier try left to say of
        its failure is dropped."""
        for table, content in tables.items():
            write_part(self._part(table, run.name), self._of_run(run, content))
        row = {**summary, "experiment": self.name, **run.cell.fields(), "run": run.index}
        write_part(self._part("summary", run.name), pa.Table.from_pylist([row], schema=SUMMARY))
        if row["status"] == COMPLETED:
            self._story(run.name).unlink(missing_ok=True)

    def summary_of(self, run: Run) -> dict[str, Any] | None:
        """The summary row of a run, None where there is none that can be read."""
        table = read_part(self._part("summary", run.name))
        return table.to_pylist()[0] if table is not None and table.num_rows else None

    def table_of(self, run: Run, name: str, schema: pa.Schema) -> pa.Table | None:
        """A table of a run, the columns of `schema` alone; None where there is none."""
        table = read_part(self._part(name, run.name))
        return None if table is None else table.select(schema.names)

    def is_completed(self, run: Run) -> bool:
        row = self.summary_of(run)
        return row is not None and row["status"] == COMPLETED

    # -- the observed run of a cell

    def write_observed(self, cell: Cell, tables: Mapping[str, pa.Table]) -> None:
        """Tables without the columns that name the cell. `parts` comes last: it marks the cell as
        observed."""
        for name in sorted(tables, key=lambda name: name == "parts"):
            write_part(self._part(name, cell.name), self._of_cell(cell, tables[name]))

    def parts_of(self, cell: Cell) -> list[dict[str, Any]] | None:
        """The step of a cell taken apart, a row per phase and rank; None where it was not
        observed."""
        table = read_part(self._part("parts", cell.name))
        return None if table is None else table.to_pylist()

    def timed_of(self, cell: Cell) -> list[dict[str, Any]]:
        """What the collectives of a cell took, a row per rank and operation; empty where it was not
        observed."""
        table = read_part(self._part("timed_collectives", cell.name))
        return [] if table is None else table.to_pylist()

    # -- the whole experiment

    def read(self, table: str) -> pa.Table | None:
        """Every readable part of a table, one after another; None where there is none."""
        return concat(read_part(path) for path in sorted((self.folder / table).glob("*.arrow")))

    def next_turn(self) -> int:
        """The number of the next turn of layouts: one more than that of any run that is kept."""
        table = self.read("summary")
        known = (
            pa.compute.max(table.column("turn")).as_py()
            if table is not None and "turn" in table.column_names
            else None
        )
        return 0 if known is None else known + 1

    def write_comparison(self, table: pa.Table) -> Path:
        return write_part(self.folder / COMPARISON, table)

    def write_failure(self, name: str, detail: str) -> None:
        """Keep the long story of a failure beside the one-line reason in the summary."""
        self._story(name).parent.mkdir(exist_ok=True)
        _replace(self._story(name), lambda path: path.write_text(detail + "\n"))

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    def update_manifest(self, **fields: Any) -> None:
        """Set top-level fields of manifest.json, atomically; what was there before stays."""
        merged = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            **self.manifest(),
            **fields,
            "updated_at": now(),
        }
        text = json.dumps(merged, indent=2, default=str) + "\n"
        _replace(self.folder / MANIFEST, lambda path: path.write_text(text))

    def _part(self, table: str, name: str) -> Path:
        return self.folder / table / f"{_safe(name)}.arrow"

    def _story(self, name: str) -> Path:
        return self.folder / "failures" / f"{_safe(name)}.txt"

    def _of_run(self, run: Run, table: pa.Table) -> pa.Table:
        """`table` with the columns that name its run in front, so that parts of many runs can be
        put together."""
        return _named(table, {"experiment": self.name, **run.cell.fields(), "run": run.index})

    def _of_cell(self, cell: Cell, table: pa.Table) -> pa.Table:
        return _named(table, {"experiment": self.name, **cell.fields()})


def _named(table: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    fields = [SUMMARY.field(name) for name in values]
    columns = [
        pa.repeat(pa.scalar(values[field.name], field.type), table.num_rows) for field in fields
    ]
    return pa.Table.from_arrays(
        columns + table.columns, schema=pa.schema([*fields, *table.schema], table.schema.metadata)
    )


# -- files


def write_part(path: Path, table: pa.Table) -> Path:
    """Write an Arrow IPC file, compressed, that is there whole or not at all."""
    packed = pa.ipc.IpcWriteOptions(compression="zstd")

    def write(temporary: Path) -> None:
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema, options=packed) as writer,
        ):
            writer.write_table(table)

    return _replace(path, write)


def read_part(path: Path) -> pa.Table | None:
    """A part in memory, None where it is missing, cut short or no Arrow file. Raises UserError for
    another schema version."""
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    found = (table.schema.metadata or {}).get(b"schema_version", b"0").decode()
    if found != str(SCHEMA_VERSION):
        raise _other_version(path.parent.parent, found)
    return table


def concat(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    """Tables one after another, None where there are none. A column that only some have is null in
    the others."""
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found, promote_options="default") if found else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json, empty where there is none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_version(folder: Path) -> None:
    """Raises UserError if `folder` holds results of another schema version."""
    found = read_manifest(folder).get("schema_version", SCHEMA_VERSION)
    if found != SCHEMA_VERSION:
        raise _other_version(folder, found)


def _other_version(folder: Path, found: Any) -> UserError:
    return UserError(
        f"{folder} holds results of schema version {found}, this orchestrator reads and writes "
        f"version {SCHEMA_VERSION}; "
        "give another --result-dir, or read it with the release that wrote it"
    )


def _replace(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in its place; both survive a
    power cut."""
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


def _safe(name: str) -> str:
    """`name` as a file name; one that had to be changed, or is too long, ends in a digest so that
    no two meet."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]", "_", name)
    return safe if safe == name and len(name) <= 200 else f"{safe[:180]}-{digest(name)}"


# -- finding, listing, exporting


def find(path: Path) -> list[Path]:
    """The experiment folders at `path`: itself, or those in it. Raises UserError where there are
    none."""
    if _is_experiment(path):
        return [path]
    found = (
        sorted(child for child in path.iterdir() if _is_experiment(child)) if path.is_dir() else []
    )
    if not found:
        raise UserError(
            f"there are no results in {path}; give the folder that `orchestrator submit` named, "
            "or the one it is in"
        )
    return found


def _is_experiment(path: Path) -> bool:
    """A run was begun there, or has ended: empty folders are no results."""
    summary = path / "summary"
    return summary.is_dir() and ((path / MANIFEST).is_file() or any(summary.glob("*.arrow")))


def list_runs(root: Path) -> list[dict[str, Any]]:
    """One row an experiment under `root`, newest last: name, folder, model, strategies, started_at,
    runs by their status."""
    if not root.exists():
        return []
    rows = [_describe(folder) for folder in find(root)]
    return sorted(rows, key=lambda row: row["started_at"])


def _describe(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    row: dict[str, Any] = {
        "name": folder.name,
        "folder": str(folder),
        "started_at": manifest.get("started_at", ""),
    }
    try:
        check_version(folder)
        table = Store(folder).read("summary")
    except UserError:
        nothing = {"model": "", "strategies": [], "completed": 0, "invalid": 0, "failed": 0}
        return {**row, **nothing, "schema_version": manifest.get("schema_version")}
    runs = table.to_pylist() if table is not None else []
    done, invalid = (
        sum(run["status"] == status for run in runs) for status in (COMPLETED, INVALID)
    )
    return {
        **row,
        "model": ", ".join(dict.fromkeys(run["model"] for run in runs)),
        "strategies": list(dict.fromkeys(run["strategy"] for run in runs)),
        "completed": done,
        "invalid": invalid,
        "failed": len(runs) - done - invalid,
        "schema_version": SCHEMA_VERSION,
    }


def export(folder: Path, format: str, out: Path) -> list[Path]:
    """Merge every table's parts into `out`/<table>.<format>. Returns the files written. Lists
    become JSON text in CSV.

    Raises UserError for another format, where there are no results, or where the files cannot be
    written.
    """
    if format not in FORMATS:
        raise UserError(f"there is no format '{format}'; use {', '.join(FORMATS)}")
    find(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [
            _replace(out / f"{name}.{format}", partial(_write_as, format, table))
            for name, table in _tables(folder)
        ]
    except OSError as error:
        raise UserError(
            f"tables cannot be written to {out}: {error.strerror or error}; give another --out"
        ) from error


def _tables(folder: Path) -> Iterator[tuple[str, pa.Table]]:
    folders = find(folder)
    for path in folders:
        check_version(path)
    for name in TABLES:
        table = concat(Store(path).read(name) for path in folders)
        if table is not None:
            yield name, table
    comparison = concat(read_part(path / COMPARISON) for path in folders)
    if comparison is not None:
        yield "comparison", comparison


def _write_as(format: str, table: pa.Table, path: Path) -> None:
    if format == "parquet":
        pa.parquet.write_table(table, path)
    elif format == "arrow":
        pa.feather.write_feather(table, str(path), compression="uncompressed")
    else:
        pa.csv.write_csv(_flat(table), path)


def _flat(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [
                None if value is None else json.dumps(value)
                for value in table.column(index).to_pylist()
            ]
            table = table.set_column(index, field.name, pa.array(texts, type=pa.string()))
    return table


# -- what goes into the tables


def requests_part(
    table: pa.Table, detailed: bool, decode: Callable[[Sequence[int]], str] | None
) -> pa.Table:
    """The requests of a run as they are kept: the tokens, and their text where there is a
    tokenizer, only if `detailed`."""
    if not detailed:
        return table.drop_columns(["output_token_ids"])
    if decode is None:
        return table
    texts = [
        None if ids is None else decode(ids) for ids in table.column("output_token_ids").to_pylist()
    ]
    return table.append_column("output_text", pa.array(texts, type=pa.string()))


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
