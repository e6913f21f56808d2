"""The results of one experiment: a folder with an Arrow file a run and table, never appended to.

A part is written under a temporary name, synced, named in the journal and renamed, so it is there
whole or not at all. The summary part comes last and marks its run as done. A run of which any table
is not what was written counts as missing, and so does what was observed of a cell.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Run
from orchestrator.store.arrow_files import (
    Unreadable,
    concat,
    parsed,
    read_part,
    replace_file,
    write_arrow,
)
from orchestrator.store.folders import MANIFEST, check_version, is_packed, now, read_manifest
from orchestrator.store.journal import Journal, tell
from orchestrator.store.lock import locked
from orchestrator.store.names import safe_name
from orchestrator.store.schema import (
    COMPLETED,
    OUTCOME_TABLES,
    OUTCOMES,
    RunKey,
    RunOutcome,
    StartKey,
    cell_key,
    named,
    observed_name,
)
from orchestrator.store.spool import Spool, spool_of
from workers.rows import SCHEMA_VERSION

# The observed ones last; `parts`, and `training_parts`, mark their cell as observed.
RUN_TABLES = ("summary", "requests", "steps", "collectives", "telemetry")
TRAINING_TABLES = ("training", "training_steps", "training_collectives", "telemetry")
OBSERVED_TABLES = ("spans", "timed_collectives", "parts")
TRAINING_OBSERVED = ("training_overlaps", "training_parts")
OBSERVED, COUNTED = (OBSERVED_TABLES[-1], TRAINING_OBSERVED[-1]), ("kernels",)
OF_STARTS = OBSERVED_TABLES, TRAINING_OBSERVED, COUNTED  # of a cell in a start, and of no run
GROUPS = RUN_TABLES, TRAINING_TABLES, *OF_STARTS
TABLES = tuple(dict.fromkeys(name for group in GROUPS for name in group))
COMPARISON, RATES, ABLATION = "comparison.arrow", "rates.arrow", "ablation.arrow"


class Store:
    """The results of one experiment under `folder`. What writes raises UserError where it cannot:
    what was kept before stays as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = Journal(folder)
        self._spool: Spool | None = None

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
                f"{self.folder} holds packed results, to which no run can be added; `orchestrator "
                "unpack` makes a folder of them that can grow, or give another --result-dir"
            )

    @property
    def is_empty(self) -> bool:
        """Whether no run was kept here."""
        return not any(map(self._files, OUTCOME_TABLES))

    def holds(self, table: str) -> bool:
        """Whether any part of a table is there, or should be."""
        return bool(self._files(table))

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder and be the only one that adds runs to it. Raises UserError where no run
        can be added, it cannot be written, or another process writes there."""
        self.check_open()
        with contextlib.ExitStack() as stack:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder))
            stack.enter_context(self._sent())
            self.create()
            yield

    @contextlib.contextmanager
    def _sent(self) -> Iterator[None]:
        """Keep the store of a URI as this folder is."""
        self._spool = spool_of(self.folder)
        with self._spool.held() if self._spool else contextlib.nullcontext():
            yield

    def create(self) -> None:
        """Make the folders of the tables, and the journal."""
        self.check_open()
        with self._writing():
            for table in TABLES:
                (self.folder / table).mkdir(parents=True, exist_ok=True)
                for leftover in (self.folder / table).glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            self._journal.begin(self._from_before())

    def _from_before(self) -> Iterator[Path]:
        """What is there of results that have no checksums yet, and can be read."""
        manifest = self.folder / MANIFEST
        parts = (path for table in TABLES for path in self._files(table))
        yield from (path for path in parts if read_part(path) is not None)
        if manifest.is_file() and self.manifest():
            yield manifest

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say in a line why something cannot be written, and send it where it belongs."""
        try:
            yield
            if self._spool:
                self._spool.push()
        except OSError as error:
            reason = (
                os.strerror(error.errno) if error.errno else error
            )  # Arrow's own text is longer
            raise UserError(
                f"results cannot be written to {self.folder}: {reason}; what is there is kept: "
                "make room and give the same command again, or another --result-dir"
            ) from error

    # -- one run

    def run_key(self, run: Run) -> RunKey:
        """The columns that name a run."""
        return RunKey(cell=cell_key(self.name, run.cell), start=run.start, run=run.index)

    def write_run(self, run: Run, outcome: pa.Table, tables: Mapping[str, pa.Table]) -> None:
        """Keep a run: `tables` by name first, its row of one of OUTCOME_TABLES last.

        What an earlier try left is dropped: its tables, and what it had to say of its failure where
        this one is completed.
        """
        key, last = self.run_key(run), outcome.schema.metadata[b"table"].decode()
        of_run = {name: named(table, key) for name, table in tables.items()}
        with self._writing():
            for table, content in {**of_run, last: outcome}.items():
                self._write(self._part(table, run.name), content)
            for table in {*RUN_TABLES, *TRAINING_TABLES} - {*tables, last}:
                self._journal.drop(self._part(table, run.name))
            if OUTCOMES.rows(outcome)[0].status == COMPLETED:
                self._story(run.name).unlink(missing_ok=True)

    def summary_of(self, run: Run) -> pa.Table | None:
        """The outcome of a run, one row; None where there is none, or any table of the run is not
        what was written."""
        parts = (self._read(self._part(table, run.name)) for table in OUTCOME_TABLES)
        return next((table for table in parts if table is not None and table.num_rows), None)

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

        The last one marks the cell as observed in this start.
        """
        key = self.start_key(cell, start)
        with self._writing():
            for name in sorted(tables, key=TABLES.index):
                self._write(self._part(name, observed_name(cell, start)), named(tables[name], key))

    def observed(self, cell: Cell, start: int, marks: Sequence[str] = OBSERVED) -> pa.Table | None:
        """The table `parts`, or `training_parts`, of a cell in a start; None where it was not
        observed. marks: the tables that are looked for instead."""
        parts = (self._read(self._part(one, observed_name(cell, start))) for one in marks)
        return next((table for table in parts if table is not None), None)

    # -- the whole experiment

    def read(self, table: str) -> pa.Table | None:
        """Every part of a table that counts, or the file it was packed into; None without
        either."""
        return concat(map(self._read, self._files(table)))

    def outcomes(self) -> list[RunOutcome]:
        """What became of every run."""
        tables = [found for name in OUTCOME_TABLES if (found := self.read(name)) is not None]
        return [one for table in tables for one in OUTCOMES.rows(table)]

    def experiments_in(self, table: str) -> set[str]:
        """The experiments that rows of a table say they are of."""
        columns = [self._read(path, only="experiment") for path in self._files(table)]
        return {name for one in columns if one for name in one.column(0).unique().to_pylist()}

    def comparison(self) -> pa.Table | None:
        """The comparison that was kept."""
        return self._read(self.folder / COMPARISON)

    def ablation(self) -> pa.Table | None:
        """What was kept of the effects of techniques."""
        return self._read(self.folder / ABLATION)

    def write_comparison(self, table: pa.Table, ablation: pa.Table | None = None) -> None:
        """Keep the comparison beside the tables, and the effects of techniques where any were left
        out."""
        with self._writing():
            self._write(self.folder / COMPARISON, table)
            if ablation is not None:
                self._write(self.folder / ABLATION, ablation)

    def drop_comparison(self) -> None:
        """Let there be neither: runs are added that they do not know."""
        with self._writing():
            for name in (COMPARISON, ABLATION):
                self._journal.drop(self.folder / name)

    def rates(self) -> pa.Table | None:
        """What a search of rates found, where this is the folder of its runs."""
        return self._read(self.folder / RATES)

    def write_rates(self, table: pa.Table) -> Path:
        """Keep what a search of rates found beside the folders of its runs."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._sent(), self._writing():
            self._write(self.folder / RATES, table)
        return self.folder / RATES

    def write_failure(self, name: str, detail: str) -> None:
        """Keep the long story of a failure beside the one-line reason in the summary."""
        with self._writing():
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
        with self._writing():
            self._journal.write(self.folder / MANIFEST, lambda path: path.write_text(text))

    # -- the files

    def _files(self, table: str) -> list[Path]:
        """The parts of a table that are there, or should be."""
        folder, packed = self.folder / table, self.folder / f"{table}.arrow"
        if is_packed(self.folder):
            return [packed] if self._is_kept(packed) else []
        return sorted({*folder.glob("*.arrow"), *self._journal.known_in(folder)})

    def _is_kept(self, path: Path) -> bool:
        """Whether a file is there, or should be."""
        return path.exists() or self._journal.knows(path)

    def _read(self, path: Path, only: str | None = None) -> pa.Table | None:
        """A part, or one column of it. None where it counts as missing, for itself or for another
        table of the same run."""
        beside = [self._journal.is_sound(one) for one in self._beside(path) if self._is_kept(one)]
        if not all(beside) or not self._is_kept(path):
            return None
        content = self._journal.read(path)
        try:
            return None if content is None else parsed(content, path, only)
        except Unreadable as error:
            tell(self.folder, path, str(error))
            return None

    def _beside(self, path: Path) -> list[Path]:
        """The parts of the other tables of the same run, or observed cell. None of packed
        results."""
        if path.parent.parent != self.folder:
            return []
        mine = path.parent.name
        tables = {name for group in GROUPS if mine in group for name in group} - {mine}
        return [self.folder / table / path.name for table in sorted(tables)]

    def _write(self, path: Path, table: pa.Table) -> None:
        self._journal.write(path, partial(write_arrow, table=table))

    def _part(self, table: str, name: str) -> Path:
        return self.folder / table / f"{safe_name(name)}.arrow"

    def _story(self, name: str) -> Path:
        return self.folder / "failures" / f"{safe_name(name)}.txt"
