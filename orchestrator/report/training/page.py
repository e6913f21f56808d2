"""The comparison of runs that train, as a page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.analysis.comparing.rounds import load_of
from orchestrator.analysis.training.comparison import findings_of
from orchestrator.analysis.training.rows import TRAFFIC
from orchestrator.report import environment
from orchestrator.report.html import filled, write
from orchestrator.report.training.terminal import COLUMNS, CPU_NOTE, describe, on_cpu, reasons
from orchestrator.store.store import Store
from workers.rows import grouped
from workers.units import format_bytes


def render_html(folders: Sequence[Path], path: Path) -> Path:
    """Write the page of the experiments in `folders` to `path`. Raises UserError where it cannot be
    written."""
    found = findings_of(folders)
    loads = grouped(found.comparison, lambda one: load_of(one.cell))
    sections = [
        (*describe(cells), reasons(cells), found.sentences(load)) for load, cells in loads.items()
    ]
    page = filled(
        "training.html.j2",
        title=", ".join(dict.fromkeys(one.cell.model for one in found.comparison)),
        hardware=environment.hardware(folders),
        sections=sections,
        meanings={name: meaning for name, (meaning, _) in COLUMNS.items()},
        traffic=[row for folder in folders for row in traffic_of(folder)],
        cpu_note=CPU_NOTE if on_cpu(found) else None,
    )
    write(page, path, "--out")
    return path


def traffic_of(folder: Path) -> list[dict[str, str]]:
    """What a step of each layout communicates, of the rank with most bytes in an operation."""
    table = Store(folder).read(TRAFFIC.name)
    rows = [] if table is None else TRAFFIC.rows(table)
    of_operation = grouped(rows, lambda one: (one.cell, one.op, one.axis))
    most = [max(mine, key=lambda one: one.bytes) for mine in of_operation.values()]
    return [
        {
            "layout": one.cell.strategy,
            "operation": one.op,
            "axis": one.axis,
            "calls": str(one.calls),
            "bytes": format_bytes(one.bytes),
        }
        for one in most
    ]
