"""What names a cell, a start and a run in every table, and what became of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TypeVar

import numpy as np
import pyarrow as pa

from orchestrator.experiment import Cell, Deployment, Scenario
from workers.rows import Table, column, columns, flat, group, row

K = TypeVar("K")
COMPLETED, FAILED, INVALID = "completed", "failed", "invalid"
# A run has a row in one of them: the last part that is written of it, which marks it as done.
OUTCOME_TABLES = ("summary", "training")


@row
class CellKey:
    """One cell of an experiment: deployment x scenario x concurrency."""

    experiment: str = column("name of the experiment, that of its folder when it was begun")
    model: str = column("name of the model")
    strategy: str = column("layout, in its canonical spelling")
    engine: str = column("engine that executes it")
    dtype: str = column(
        "type of weights and activations; that as asked where ablation says another precision"
    )
    quantization: str = column(
        'what is FP8: "none", or "fp8" (matrices of layers; "fp8-prefill", "fp8-decode": in that '
        'phase) and "kv-fp8" (KV cache), joined by +'
    )
    ablation: str = column(
        'what is left out: comm, p2p, the name of a technique, or "none"; of training what is '
        "changed, as checkpointing=full"
    )
    scenario: str = column("name of the lengths, or of the dataset")
    max_concurrency: int = column("requests in flight at most", "requests")

    @property
    def layout(self) -> str:
        """Its strategy, and what was left out of it."""
        return self._deployment.layout

    @property
    def deployment(self) -> str:
        """The name of its deployment."""
        return self._deployment.name

    @property
    def _deployment(self) -> Deployment:
        return Deployment(
            self.model, self.strategy, self.engine, self.dtype, self.quantization, self.ablation
        )

    @property
    def name(self) -> str:
        """The cell's name, as in the manifest and in the names of files."""
        deployment = self._deployment
        return Cell(deployment, Scenario(self.scenario, 0, 0), self.max_concurrency).name


@row
class StartKey:
    """One fresh group of workers that served a cell."""

    cell: CellKey = group()
    start: int = column("number of the start, from 0", "1")

    @property
    def name(self) -> str:
        """What the parts of what was observed are called."""
        return observed_name(self.cell, self.start)


@row
class RunKey(StartKey):
    """One repeat of a cell inside a start."""

    run: int = column("number of the run inside its start, from 0", "1")

    @property
    def name(self) -> str:
        """What the parts of the run are called, as `Run.name`."""
        return f"{super().name}.r{self.run}"


@row
class Outcome:
    """What became of a run."""

    status: str = column(
        "completed, failed, or invalid: faster than the data sheet of its devices allows"
    )
    reason: str | None = column(
        "why it failed or is invalid; of an imported run why it lacks columns"
    )


@row
class RunOutcome(Outcome, RunKey):
    """What the store itself reads of a summary."""


CELL_KEYS = Table("cells", CellKey)
START_KEYS = Table("starts", StartKey)
RUN_KEYS = Table("runs", RunKey)
OUTCOMES = Table("summary", RunOutcome)


def cell_key(experiment: str, cell: Cell) -> CellKey:
    """The columns that name `cell` of an experiment."""
    return CellKey(
        experiment=experiment,
        scenario=cell.scenario.name,
        max_concurrency=cell.max_concurrency,
        **asdict(cell.deployment),
    )


def places(table: pa.Table, keys: Table[K]) -> dict[K, np.ndarray]:
    """Key -> the places of its rows in a table that has the columns of `keys`.

    Works on whole columns: tables of samples and spans have hundreds of thousands of rows.
    """
    codes = np.zeros(table.num_rows, dtype=np.int64)
    for one in keys.columns:
        found = table.column(one.name).combine_chunks().dictionary_encode()
        codes = codes * len(found.dictionary) + np.asarray(found.indices)
    _, firsts, key_of = np.unique(codes, return_index=True, return_inverse=True)
    known = keys.rows(table.take(firsts))
    rows = [np.flatnonzero(key_of == number) for number in range(len(known))]
    return {known[number]: rows[number] for number in np.argsort(firsts)}


def observed_name(cell: Cell | CellKey, start: int) -> str:
    """What the parts of a cell that was observed in a start are called."""
    return f"{cell.name}.s{start}"


def named(table: pa.Table, key: StartKey) -> pa.Table:
    """`table` with the columns of `key` in front, so that parts can be put together."""
    values = flat(key)
    fields = [column.field for column in columns(type(key))]
    named = [
        pa.repeat(pa.scalar(values[field.name], field.type), table.num_rows) for field in fields
    ]
    schema = pa.schema([*fields, *table.schema], table.schema.metadata)
    return pa.Table.from_arrays(named + table.columns, schema=schema)
