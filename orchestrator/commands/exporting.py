"""Results for other tools: tables, the JSON of other benchmarks, and trackers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.report.output import say

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.analysis.summary import Measured

    Record = Callable[[Measured, pa.Table | None, int], Mapping[str, Any]]

TABLES = "parquet"


def export(
    folder: Path, format_: str | None, into: Path, detailed: bool, tracker: str | None
) -> None:
    """Write results in one format, hand them to a tracker, or both; print the files."""
    from orchestrator.commands import aiperf, vllm_bench
    from orchestrator.store.export import FORMATS, check_format, write_tables

    if detailed and format_ != vllm_bench.FORMAT:
        raise UserError(f"--save-detailed is of --format {vllm_bench.FORMAT}")
    if tracker is not None or format_ in (vllm_bench.FORMAT, aiperf.FORMAT):
        _check_served(folder, f"--track {tracker}" if tracker else f"--format {format_}")
    if format_ == vllm_bench.FORMAT:
        record: Record = partial(vllm_bench.record_of, detailed=detailed)
        _write_cells(folder, into, "{}.json", record)
    elif format_ == aiperf.FORMAT:
        _write_cells(folder, into, "{}/profile_export_aiperf.json", _of_aiperf)
    elif format_ is not None or tracker is None:
        from orchestrator.analysis.comparing.findings import tables

        check_format(format_ or TABLES, (*FORMATS, vllm_bench.FORMAT, aiperf.FORMAT))
        for path in write_tables(tables(folder), format_ or TABLES, into):
            say(path)
    if tracker is not None:
        _track(folder, tracker, into)


def _check_served(folder: Path, into: str) -> None:
    """Raise UserError where experiments at or below `folder` trained: no request was served."""
    from orchestrator.analysis.training.comparison import trained_at
    from orchestrator.store.export import FORMATS

    for one in trained_at([folder]):
        raise UserError(
            f"{one} trained, and {into} takes requests that were served; use --format "
            f"{', '.join(FORMATS)}"
        )


def _of_aiperf(run: Measured, requests: pa.Table | None, runs: int) -> Mapping[str, Any]:
    from orchestrator.commands.aiperf import record_of

    return record_of(run, requests)


def _write_cells(root: Path, into: Path, pattern: str, record: Record) -> None:
    """Write a file for each cell at or below `root`: its middle run by output_throughput, the lower
    one of two, so that every figure in it is of one run."""
    from orchestrator.analysis.load import load
    from orchestrator.commands.vllm_bench import completed_by_cell, requests_by_run
    from orchestrator.store.arrow_files import replace_file
    from orchestrator.store.names import safe_name
    from orchestrator.store.store import Store

    results = load([root])
    done = [(one, completed_by_cell(one.runs)) for one in results]
    if not any(cells for _, cells in done):
        raise UserError(f"no run in {root} was completed, so there is nothing to export of it")
    for one, cells in done:
        requests = requests_by_run(Store(one.folder).read("requests"))
        for left in sorted({run.cell.name for run in one.runs} - {cell.name for cell in cells}):
            say(f"note: {left} has no file, as no run of it was completed.", err=True)
        for cell, runs in cells.items():
            run = runs[(len(runs) - 1) // 2]
            name = cell.name if len(results) == 1 else f"{one.folder.name}.{cell.name}"
            path = into / pattern.format(safe_name(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            found = record(run, requests(run), len(runs))
            say(replace_file(path, partial(_write, found)))


def _write(record: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")


def _track(folder: Path, tracker: str, into: Path) -> None:
    """Hand each experiment at or below `folder` to a tracker, with its page."""
    from orchestrator.analysis.comparing.compare import COMPARED
    from orchestrator.analysis.comparing.findings import of_folders
    from orchestrator.commands.tracking import track, tracked_cells
    from orchestrator.report.html import render_html
    from orchestrator.store.folders import find

    for one in find(folder):
        comparison = of_folders([one]).comparison
        names: Sequence[str] = [row.cell.name for row in comparison]
        cells = tracked_cells(COMPARED.data(comparison), names)
        track(tracker, one.name, cells, render_html(one, None), into / tracker)
        say(f"{tracker}: {len(cells)} cells of {one.name}")
