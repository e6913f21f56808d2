"""The columns that name a cell and a run: first in every table, the same everywhere."""

from __future__ import annotations

import pyarrow as pa

from workers.records import column

# What names a cell, first in every table; `run` counts the repeats of a cell from 0.
CELL = (
    column("experiment", pa.string()),
    column("model", pa.string()),
    column("strategy", pa.string()),
    column("engine", pa.string()),
    column("dtype", pa.string()),
    column("quantization", pa.string()),
    column("ablation", pa.string()),
    column("scenario", pa.string()),
    column("max_concurrency", pa.int32(), "requests"),
)
RUN = (*CELL, column("run", pa.int32(), "1"))

CELL_KEY = tuple(field.name for field in CELL)
RUN_KEY = tuple(field.name for field in RUN)
