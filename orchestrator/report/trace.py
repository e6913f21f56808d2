"""The spans of an observed run as a Chrome trace, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Scenario
from orchestrator.results import Store
from workers.records import COMPUTE

COLOURS = {"prefill": "thread_state_iowait", "decode": "good"}  # names of chrome://tracing's palette


def write_traces(folder: Path) -> list[Path]:
    """One `traces/<cell>.json.gz` per observed cell: a process per rank, compute and communication on a line each.

    Raises UserError where no cell was observed.
    """
    table = Store(folder).read("spans")
    if table is None or not table.num_rows:
        raise UserError(f"{folder} holds no spans: none of its cells was observed")
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        cells[_name(row)].append(row)
    (folder / "traces").mkdir(exist_ok=True)
    return [_write(folder / "traces" / f"{name}.json.gz", rows) for name, rows in sorted(cells.items())]


def _name(row: Mapping[str, Any]) -> str:
    """The cell's name, as in the other tables' parts."""
    deployment = Deployment(*(row[field] for field in ("model", "strategy", "engine", "dtype", "quantization", "ablation")))
    return Cell(deployment, Scenario(row["scenario"], 0, 0), row["max_concurrency"]).name


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events(rows)}).encode()))
    return path


def events(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trace events, in microseconds from the first span; `pid` is the rank."""
    kept = list(rows)
    origin = min((row["start_us"] for row in kept), default=0.0)
    out: list[dict[str, Any]] = []
    for rank in sorted({row["rank"] for row in kept}):
        out.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        for line, name in enumerate(("compute", "communication")):
            out.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": line, "args": {"name": name}})
    for row in kept:
        out.append({
            "ph": "X", "name": row["kind"], "cat": row["phase"], "cname": COLOURS.get(row["phase"], "generic_work"),
            "pid": row["rank"], "tid": int(row["kind"] != COMPUTE), "ts": row["start_us"] - origin,
            "dur": row["end_us"] - row["start_us"],
            "args": {"step": row["step"], "phase": row["phase"], "axis": row["axis"], "bytes": row["bytes"]},
        })  # fmt: skip
    return out
