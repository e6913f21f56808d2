"""The results of one experiment: a folder with an Arrow file a run and table, never appended to.

A part is written under a temporary name, synced and renamed, so it is there whole or not at all.
The summary part comes last and marks its run as done; whatever a crash left half-written is
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Run
from orchestrator.store.arrow_files import concat, read_part, replace_file, write_part
from orchestrator.store.folders import MANIFEST, check_version, is_packed, now, read_manifest
from orchestrator.store.names import safe_name
from orchestrator.store.schema import COMPLETED, OUTCOMES, RunKey, RunOutcome, StartKey, cell_key
from workers.rows import SCHEMA_VERSION, columns, flat

# The observed ones last; `parts` marks its cell as observed.
RUN_TABLES = ("summary", "requests", "steps", "collectives", "telemetry")
OBSERVED_TABLES = ("spans", "timed_collectives", "parts")
TABLES = (*RUN_TABLES, *OBSERVED_TABLES)
COMPARISON = "comparison.arrow"


class Store:
    """The results of one experiment under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """What the experiment is called in every row: a folder that was renamed keeps it."""
        return str(self.manifest().get("name") or self.folder.name)

    def check_open(self) -> None:
        """Raise UserError where no run can be added: results of another schema version, or packed
        ones."""
        check_version(self.folder)
        if is_packed(self.folder):
            raise UserError(
                f"{self.folder} holds packed results, to which no run can be added; give another "
                "--result-dir"
            )

    def create(self) -> None:
        """Make the folder. Raises UserError where no run can be added, or it cannot be written."""
        self.check_open()
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

    def run_key(self, run: Run) -> RunKey:
        """The columns that name a run."""
        return RunKey(cell=cell_key(self.name, run.cell), start=run.start, run=run.index)

    def write_run(self, run: Run, summary: pa.Table, tables: Mapping[str, pa.Table]) -> None:
        """Keep a run: `tables` by name first, its row of the summary last.

        What an earlier try left to say of its failure is dropped where this one is completed.
        """
        for table, content in tables.items():
            write_part(self._part(table, run.name), _named(content, self.run_key(run)))
        write_part(self._part("summary", run.name), summary)
        if OUTCOMES.rows(summary)[0].status == COMPLETED:
            self._story(run.name).unlink(missing_ok=True)

    def summary_of(self, run: Run) -> pa.Table | None:
        """The summary of a run, one row; None where there is none that can be read."""
        table = read_part(self._part("summary", run.name))
        return table if table is not None and table.num_rows else None

    def outcome_of(self, run: Run) -> RunOutcome | None:
        """What became of a run; None where it has not been made."""
        table = self.summary_of(run)
        return None if table is None else OUTCOMES.rows(table)[0]

    def is_completed(self, run: Run) -> bool:
        """Whether a run has a result."""
        outcome = self.outcome_of(run)
        return outcome is not None and outcome.status == COMPLETED

    # -- what was observed of a cell in one start

    def start_key(self, cell: Cell, start: int) -> StartKey:
        """The columns that name a start of a cell."""
        return StartKey(cell=cell_key(self.name, cell), start=start)

    def write_observed(self, cell: Cell, start: int, tables: Mapping[str, pa.Table]) -> None:
        """Keep what was observed of a cell in a start, by table; the key is put in front of each.

        `parts` comes last: it marks the cell as observed in this start.
        """
        key = self.start_key(cell, start)
        for name in sorted(tables, key=OBSERVED_TABLES.index):
            write_part(self._part(name, _observed(cell, start)), _named(tables[name], key))

    def observed(self, cell: Cell, start: int) -> pa.Table | None:
        """The table `parts` of a cell in a start; None where it was not observed."""
        return read_part(self._part("parts", _observed(cell, start)))

    # -- the whole experiment

    def read(self, table: str) -> pa.Table | None:
        """Every readable part of a table, or the file it was packed into; None without either."""
        return concat(map(read_part, self._files(table)))

    def experiments_in(self, table: str) -> set[str]:
        """The experiments that rows of a table say they are of."""
        columns = [read_part(path, only="experiment") for path in self._files(table)]
        return {name for one in columns if one for name in one.column(0).unique().to_pylist()}

    def write_comparison(self, table: pa.Table) -> Path:
        """Keep the comparison beside the tables."""
        return write_part(self.folder / COMPARISON, table)

    def write_failure(self, name: str, detail: str) -> None:
        """Keep the long story of a failure beside the one-line reason in the summary."""
        self._story(name).parent.mkdir(exist_ok=True)
        replace_file(self._story(name), lambda path: path.write_text(detail + "\n"))

    def manifest(self) -> Mapping[str, Any]:
        """manifest.json, empty where there is none."""
        return read_manifest(self.folder)

    def update_manifest(self, **fields: object) -> None:
        """Set top-level fields of manifest.json, atomically; what was there before stays."""
        head = {"schema_version": SCHEMA_VERSION, "name": self.name}
        merged = {**head, **self.manifest(), **fields, "updated_at": now()}
        text = json.dumps(merged, indent=2, default=str) + "\n"
        replace_file(self.folder / MANIFEST, lambda path: path.write_text(text))

    def _files(self, table: str) -> list[Path]:
        packed = [self.folder / f"{table}.arrow"] if is_packed(self.folder) else []
        return [*packed, *sorted((self.folder / table).glob("*.arrow"))]

    def _part(self, table: str, name: str) -> Path:
        return self.folder / table / f"{safe_name(name)}.arrow"

    def _story(self, name: str) -> Path:
        return self.folder / "failures" / f"{safe_name(name)}.txt"


def _observed(cell: Cell, start: int) -> str:
    return f"{cell.name}.s{start}"


def _named(table: pa.Table, key: StartKey) -> pa.Table:
    """`table` with the columns of `key` in front, so that parts can be put together."""
    values = flat(key)
    fields = [column.field for column in columns(type(key))]
    named = [
        pa.repeat(pa.scalar(values[field.name], field.type), table.num_rows) for field in fields
    ]
    schema = pa.schema([*fields, *table.schema], table.schema.metadata)
    return pa.Table.from_arrays(named + table.columns, schema=schema)
