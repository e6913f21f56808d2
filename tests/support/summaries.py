"""Rows of runs and cells for tests, by column name: columns that a test does not name are None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import pyarrow as pa
from tables import from_flat

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.summary import MEASURED, Measured, Summary
from orchestrator.experiment import Run
from orchestrator.store.store import Store
from workers.rows import columns, flat

R = TypeVar("R")
CELL = {
    "experiment": "e",
    "model": "tiny",
    "strategy": "tp2",
    "engine": "torch",
    "dtype": "bfloat16",
    "quantization": "none",
    "ablation": "none",
    "scenario": "short",
    "max_concurrency": 8,
}
RUN = {
    **CELL,
    "start": 0,
    "run": 0,
    "status": "completed",
    "input_len": 256,
    "output_len": 128,
    "num_prompts": 8,
    "num_gpus": 2,
    "seed": 0,
    "device_name": "cpu",
    "started_at": "2030-01-01T00:00:00+00:00",
    "block": 0,
    "metadata": "{}",
    "output_throughput": 100.0,
}
COMPARED = {
    **CELL,
    "status": "completed",
    "num_runs": 1,
    "num_starts": 1,
    "distinct_outputs": 0,
    "input_len": 256,
    "output_len": 128,
    "num_gpus": 2,
    "device_name": "cpu",
    "output_throughput": 100.0,
}


def measured(**given: object) -> Measured:
    """A run as it is kept, completed unless told. Raises TypeError for an unknown column."""
    return _row(Measured, {**RUN, **given})


def summary(**given: object) -> Summary:
    """A run with what was observed of its cell. Raises TypeError for an unknown column."""
    return _row(Summary, {**RUN, **given})


def one_run(
    strategy: str, throughput: float | None = None, start: int = 0, **given: object
) -> Summary:
    """A run of four devices, the only one of its start; failed where there is no throughput."""
    status = "failed" if throughput is None else "completed"
    base = {"strategy": strategy, "dtype": "float32", "num_gpus": 4, "status": status}
    return summary(**{**base, "start": start, "output_throughput": throughput, **given})


def comparison(**given: object) -> Comparison:
    """A cell of the comparison. Raises TypeError for an unknown column."""
    return _row(Comparison, {**COMPARED, **given})


def write_run(
    store: Store, run: Run, tables: Mapping[str, pa.Table] | None = None, /, **given: object
) -> Measured:
    """Keep a run in a store, as the driver does: its tables, then its row."""
    row = measured(**{**flat(store.run_key(run)), **given})
    store.write_run(run, MEASURED.make([row]), tables or {})
    return row


def _row(kind: type[R], given: dict[str, object]) -> R:
    return from_flat(kind, {**{column.name: None for column in columns(kind)}, **given})
