"""The comparison of runs that train, as a page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from orchestrator.analysis.comparing import gaps
from orchestrator.analysis.training.comparison import TrainingComparison, findings_of
from orchestrator.analysis.training.observed import Observed, TrainedParts, observed_in
from orchestrator.analysis.training.rows import TRAFFIC
from orchestrator.report import environment
from orchestrator.report.charts.looks import looks
from orchestrator.report.charts.views import layout_names
from orchestrator.report.html import drawn, write
from orchestrator.report.output import inline_json
from orchestrator.report.text import figure, percent, plural, ranges
from orchestrator.report.training import charts
from orchestrator.report.training.predicted import predictions
from orchestrator.report.training.terminal import (
    COLUMNS,
    CPU_NOTE,
    describe,
    effect_shown,
    in_order,
    loads_of,
    on_cpu,
    reasons,
    sentences,
    titles_of,
)
from orchestrator.report.training.verdict import verdicts_of
from orchestrator.store.store import Store
from workers.rows import grouped
from workers.units import format_bytes

# Heading -> column, of the parts of a step and of the calls of an operation, in ms.
PARTS_SHOWN = {
    "step": "step_ms",
    "forward": "forward_ms",
    "backward": "backward_ms",
    "update": "optimizer_ms",
    "other": "other_ms",
    "exposed": "exposed_ms",
    "hand-over": "handover_ms",
    "agreement": "agreement_ms",
    "gap": "gap_ms",
    "profiled / timed": "profile_ratio",
}
OVERLAPS_SHOWN = {"under way": "busy_ms", "exposed": "exposed_ms", "hidden": "hidden_ms"}


def render_html(folders: Sequence[Path], path: Path) -> Path:
    """Write the page of the experiments in `folders` to `path`. Raises UserError where it cannot be
    written."""
    found, seen = findings_of(folders), [observed_in(folder) for folder in folders]
    cells, ranked = in_order(found), not on_cpu(found)
    titles = titles_of(cells)
    page = drawn(
        "training",
        title=", ".join(dict.fromkeys(one.cell.model for one in cells)),
        headlines=verdicts_of(found) if ranked else [],
        data=inline_json(_data(folders, cells, seen, titles)),
        setup=setup_of(folders, cells),
        environments=list(map(environment.describe, folders)),
        sections=[
            (titles[load.experiment], *_said(mine), sentences(found, load))
            for load, mine in loads_of(cells)
        ],
        titles=titles,
        strategies=(one.cell.strategy for one in cells),
        is_ranked=ranked,
        meanings={name: meaning for name, (meaning, _) in COLUMNS.items()},
        traffic=[row for folder in folders for row in traffic_of(folder)],
        lost=found.lost,
        missing=gaps.sentences(found.missing),
        effects=[effect_shown(one) for one in found.effects],
        parts=[row for one in seen for row in parts_shown(one)],
        overlaps=[row for one in seen for row in overlaps_shown(one)],
        cpu_note=None if ranked else CPU_NOTE,
    )
    write(page, path, "--out")
    return path


def _said(cells: Sequence[TrainingComparison]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a load's table, and why others have none."""
    rows = [{name: _grouped(text) for name, text in row.items()} for row in describe(cells)[1]]
    return rows, reasons(cells)


def _grouped(text: str) -> str:
    """A large number as elsewhere on pages: 25,535."""
    return f"{int(text):,}" if text.isdigit() else text


def _data(
    folders: Sequence[Path],
    cells: Sequence[TrainingComparison],
    seen: Sequence[Observed],
    titles: charts.Titles,
) -> dict[str, object]:
    """What the charts show."""
    names = layout_names(one.cell for one in cells)
    return {
        "layouts": looks(names),
        "step": charts.steps(cells, [row for one in seen for row in one.parts], names, titles),
        "memory": charts.memory(cells, names, titles, predictions(folders, cells)),
        "loss": charts.losses(folders, cells, names, titles),
        "capacity_gb": environment.capacity_gb(folders),
    }


def setup_of(folders: Sequence[Path], trained: Sequence[TrainingComparison]) -> dict[str, str]:
    """What was trained, how and on what: heading -> fact."""
    known = environment.setup(folders, ())
    facts = {
        "Model": (one.cell.model for one in trained),
        "Precision": (one.conditions.precision for one in trained),
        "Engine": (one.cell.engine for one in trained),
        "Batch": (
            f"{one.conditions.global_batch_size} sequences of {one.conditions.seq_len} tokens, "
            f"{one.conditions.steps} steps"
            for one in trained
        ),
        "Repeats": (plural(one.num_starts, "start") for one in trained),
        "Node": (environment.hardware(folders),),
    }
    return {heading: "; ".join(dict.fromkeys(all_of)) for heading, all_of in facts.items()} | known


def parts_shown(seen: Observed) -> list[dict[str, str]]:
    """Where the step of each rank goes, in ms: means over the starts of a cell."""
    ranks = grouped(seen.parts, lambda one: (one.cell, one.rank))
    piped = {one.cell for one in seen.parts if any(one.stages)}
    return [
        {
            "layout": mine[0].cell.layout,
            "rank": str(rank),
            "stages": ranges(mine[0].stages) if mine[0].cell in piped else "-",
            **{title: mean_of(mine, name) for title, name in PARTS_SHOWN.items()},
            "bubble": bubble_of(mine),
        }
        for (_, rank), mine in ranks.items()
    ]


def overlaps_shown(seen: Observed) -> list[dict[str, str]]:
    """How long the calls of each operation take, in ms of a step: means over ranks and starts."""
    of_operation = grouped(seen.overlaps, lambda one: (one.cell, one.op, one.axis))
    return [
        {
            "layout": mine[0].cell.layout,
            "operation": op,
            "axis": axis or "not told",
            **{title: mean_of(mine, name) for title, name in OVERLAPS_SHOWN.items()},
        }
        for (_, op, axis), mine in of_operation.items()
    ]


def mean_of(rows: Sequence[object], name: str) -> str:
    """The mean of a column; "-" where a row does not know it."""
    values = [getattr(one, name) for one in rows]
    return "-" if None in values else figure(fmean(values))


def bubble_of(rows: Sequence[TrainedParts]) -> str:
    """The mean share of a pipeline's step; "-" without a pipeline."""
    known = [one.bubble_share for one in rows if one.bubble_share is not None]
    return percent(fmean(known), of=1.0) if known else "-"


def traffic_of(folder: Path) -> list[dict[str, str]]:
    """What a step of each layout communicates, of the rank with most bytes in an operation."""
    table = Store(folder).read(TRAFFIC.name)
    rows = [] if table is None else TRAFFIC.rows(table)
    of_operation = grouped(rows, lambda one: (one.cell, one.op, one.axis))
    most = [max(mine, key=lambda one: one.bytes) for mine in of_operation.values()]
    return [
        {
            "layout": one.cell.layout,
            "operation": one.op,
            "axis": one.axis,
            "calls": str(one.calls),
            "bytes": format_bytes(one.bytes),
        }
        for one in most
    ]
