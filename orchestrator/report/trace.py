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
from orchestrator.store.results import Store
from workers.records import COMPUTE

LINES = ("steps", "compute", "communication")
COLOURS = {
    "prefill": "thread_state_iowait",
    "decode": "good",
}  # names of chrome://tracing's palette


def write_traces(folder: Path) -> list[Path]:
    """One `traces/<cell>.json.gz` per observed cell: a process per rank, with a line each for
    LINES.

    Raises UserError where no cell was observed.
    """
    table = Store(folder).read("spans")
    if table is None or not table.num_rows:
        raise UserError(f"{folder} holds no spans: none of its cells was observed")
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        cells[_name(row)].append(row)
    (folder / "traces").mkdir(exist_ok=True)
    return [
        _write(folder / "traces" / f"{name}.json.gz", rows) for name, rows in sorted(cells.items())
    ]


def _name(row: Mapping[str, Any]) -> str:
    """The cell's name, as in the other tables' parts."""
    deployment = Deployment(
        *(
            row[field]
            for field in ("model", "strategy", "engine", "dtype", "quantization", "ablation")
        )
    )
    return Cell(deployment, Scenario(row["scenario"], 0, 0), row["max_concurrency"]).name


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events(rows)}).encode()))
    return path


def events(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trace events, in microseconds from the first span; `pid` is the rank, with a line each for
    LINES.

    Names begin with the phase: Perfetto colours slices by their name, chrome://tracing by `cname`.
    """
    kept = list(rows)
    origin = min((row["start_us"] for row in kept), default=0.0)
    out: list[dict[str, Any]] = []
    for rank in sorted({row["rank"] for row in kept}):
        out.append(
            {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
        )
        for line, name in enumerate(LINES):
            out.append(
                {"ph": "M", "name": "thread_name", "pid": rank, "tid": line, "args": {"name": name}}
            )
    steps: dict[tuple[int, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in kept:
        steps[row["rank"], row["phase"], row["step"]].append(row)
    for (rank, phase, step), spans in steps.items():
        own = [
            row for row in spans if row["kind"] != "send"
        ] or spans  # what is sent goes on beside the next step
        start, end = min(row["start_us"] for row in own), max(row["end_us"] for row in own)
        out.append(
            _slice(
                f"{phase} step {step}", rank, 0, phase, start - origin, end - start, {"step": step}
            )
        )
    for row in kept:
        line, axis = (
            (1, "") if row["kind"] == COMPUTE else (2, f" {row['axis']}" if row["axis"] else "")
        )
        args = {name: row[name] for name in ("step", "axis", "bytes")}
        took = row["end_us"] - row["start_us"]
        out.append(
            _slice(
                f"{row['phase']} {row['kind']}{axis}",
                row["rank"],
                line,
                row["phase"],
                row["start_us"] - origin,
                took,
                args,
            )
        )
    return out


def _slice(
    name: str,
    rank: int,
    line: int,
    phase: str,
    start_us: float,
    took_us: float,
    args: Mapping[str, Any],
) -> dict[str, Any]:
    colour = COLOURS.get(phase, "generic_work")
    at = {"pid": rank, "tid": line, "ts": start_us, "dur": took_us}
    return {
        "ph": "X",
        "name": name,
        "cat": phase,
        "cname": colour,
        **at,
        "args": {**args, "phase": phase},
    }
