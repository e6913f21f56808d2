"""The comparison as one page, `report.html`. Its data, style and charting library are inside, so
that it opens without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import jinja2
import pyarrow as pa

from orchestrator.analysis.comparing import gaps
from orchestrator.analysis.comparing.ablation import EFFECTS, TECHNIQUE_EFFECTS
from orchestrator.analysis.comparing.best import BEST
from orchestrator.analysis.comparing.compare import COMPARED, Comparison
from orchestrator.analysis.comparing.curves import CURVES
from orchestrator.analysis.comparing.findings import NONE_ENDED, Findings, of_results
from orchestrator.analysis.comparing.spreads import STATISTICS
from orchestrator.analysis.comparing.verdicts import VERDICTS
from orchestrator.analysis.goodput import RATES
from orchestrator.analysis.kernels import TOP_KERNELS
from orchestrator.analysis.load import found_rates, load
from orchestrator.analysis.observed.accounting import CELL_PARTS, CELL_TIMED
from orchestrator.analysis.summary import Summary
from orchestrator.errors import UserError
from orchestrator.report import environment, kernels, sections, side_by_side, sweep
from orchestrator.report.charts import cells, cost, latencies, memory, telemetry, timeline
from orchestrator.report.charts.choices import choices, load_in_words
from orchestrator.report.charts.communication import OperationFigures, communication
from orchestrator.report.charts.headline import headlines
from orchestrator.report.charts.looks import Look, axes_in_words, looks, planned_looks
from orchestrator.report.charts.views import Names, layout_names
from orchestrator.report.output import inline_json, plain
from orchestrator.report.shown_columns import known_columns
from orchestrator.report.terminal import CPU_NOTE, on_cpu
from orchestrator.store import folders
from orchestrator.store.arrow_files import concat
from orchestrator.store.schema import COMPLETED, INVALID, CellKey
from orchestrator.store.store import Store
from workers.rows import Table

__all__ = ["Content", "describe", "drawn", "planned_looks", "render_html", "write"]

REPORT = "report.html"
STATIC = files("orchestrator.report") / "static"
LIBRARIES = ("vega.min.js", "vega-lite.min.js", "theme.js", "page.js", "drawing.js")
R = TypeVar("R")


def render_html(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the results at `folder`, an experiment's or one that holds several, to
    `out` [folder/report.html].

    Raises UserError where there are no results, none of their runs has ended, or the page cannot be
    written.
    """
    content = Content.of(folder)
    if not content.found.comparison:
        raise UserError(f"there is nothing to show of {folder}: {NONE_ENDED}")
    strategies = (one.cell.strategy for one in content.found.comparison)
    values = describe(content, folder.name) | {"COMPLETED": COMPLETED, "INVALID": INVALID}
    page = drawn("report", strategies, **values)
    path = out or folder / REPORT
    write(page, path, "--out")
    return path


def drawn(name: str, strategies: Iterable[str], **values: object) -> str:
    """A page with charts, from a template and a script in `static` of that name. strategies: of the
    layouts that are on it."""
    axes = axes_in_words(strategies)
    scripts = [*map(_static, LIBRARIES), _static(f"{name}.js")]
    licences = _static("LICENSES.txt")
    template = _templates().get_template(f"{name}.html.j2")
    style = _static("report.css")
    return template.render(**values, axes=axes, scripts=scripts, licences=licences, style=style)


def write(page: str, path: Path, flag: str) -> None:
    """Write a page. Raises UserError where it cannot be written. flag: what names another place."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {path}: {error.strerror}; give another {flag}"
        ) from error


@dataclass(frozen=True)
class Content:
    """The results that a page is made of. folders: of each experiment."""

    folders: Sequence[Path]
    runs: Sequence[Summary]
    found: Findings

    @classmethod
    def of(cls, folder: Path) -> Content:
        """The results at `folder`. Raises UserError where there are none."""
        results = load([folder])
        runs = [run for one in results for run in one.runs]
        found = of_results(results)
        comparison = cells.with_bounds(found.comparison, runs)
        kept = replace(found, comparison=comparison, rates=found_rates([folder]))
        kept = unranked(kept) if on_cpu(comparison) else kept
        return cls(folders.find(folder), runs, kept)

    @cached_property
    def names(self) -> dict[CellKey, str]:
        """What the layout of each cell is called."""
        return layout_names(one.cell for one in self.found.comparison)

    @cached_property
    def operations(self) -> list[OperationFigures]:
        """What the calls of each operation took."""
        return communication(self.rows(CELL_TIMED), self.names)

    @cached_property
    def looks(self) -> list[Look]:
        """How each layout is drawn."""
        return looks(self.names)

    def layout_of(self, cell: CellKey) -> str:
        """The name of a cell's layout. An ablated cell has the name of the layout that nothing was
        left out of."""
        return self.names[replace(cell, ablation="none")]

    def read(self, table: str) -> pa.Table | None:
        """A table of all experiments."""
        return concat(Store(folder).read(table) for folder in self.folders)

    def rows(self, table: Table[R]) -> list[R]:
        """The rows of a table of all experiments."""
        kept = self.read(table.name)
        return [] if kept is None else table.rows(kept)

    def drawn(self, table: str, chart: Callable[[pa.Table | None, Names], list[R]]) -> list[R]:
        """The rows of a chart, experiment by experiment, so that only one table at a time is in
        memory."""
        tables = (Store(folder).read(table) for folder in self.folders)
        return [row for one in tables for row in chart(one, self.names)]


def unranked(found: Findings) -> Findings:
    """Without what says that a layout is better than another one."""
    cells = [replace(one, relative_to_best=None, in_best_set=None) for one in found.comparison]
    return replace(found, comparison=cells, best=[], verdicts=[], curves=[])


def describe(content: Content, name: str) -> dict[str, object]:
    """Everything that the template shows. name: of the page where no cell names a model."""
    comparison, found = content.found.comparison, content.found
    is_ranked = not on_cpu(comparison)
    return {
        "title": ", ".join(dict.fromkeys(one.cell.model for one in comparison)) or name,
        "data": inline_json(_data(content)),
        "layouts": content.looks,
        "colours": {one.name: one.colour for one in content.looks},
        "setup": environment.setup(content.folders, comparison),
        "headlines": headlines(comparison, found.best, found.verdicts),
        "groups": side_by_side.groups(found, content.runs, content.names),
        "loads": _loads(comparison),
        "columns": known_columns(comparison),
        "run_orders": sections.run_orders(comparison, environment.nodes(content.folders)),
        "spreads": sections.spreads(found.statistics, content.names),
        "bound_sources": side_by_side.bound_sources(comparison),
        "findings": sections.verdicts(found.best, found.verdicts),
        "sweeps": sections.sweeps(found.curves),
        "is_ranked": is_ranked,
        "devices": "GPUs" if is_ranked else "workers",
        "rates": sweep.rate_tables(found.rates),
        "ablations": sections.ablations((content.layout_of(e.cell), e) for e in found.ablations),
        "techniques": sweep.technique_tables(found.techniques),
        "kernels": kernels.kernel_tables(found.kernels),
        "kernel_titles": kernels.TITLES,
        "communication": sections.operations(content.operations),
        "waits": sections.waits(comparison, content.names),
        "missing": [*gaps.sentences(found.missing), *(one.sentence for one in found.imported)],
        "cpu_note": None if is_ranked else CPU_NOTE,
        "environments": list(map(environment.describe, content.folders)),
    }


def _loads(comparison: Iterable[Comparison]) -> dict[tuple[str, str, int], str]:
    """Each load in words, by what the page selects it by."""
    return {
        (one.cell.experiment, one.cell.scenario, one.cell.max_concurrency): load_in_words(one)
        for one in comparison
    }


# -- the data of the charts and of what can be downloaded


def _data(content: Content) -> dict[str, object]:
    comparison, names = content.found.comparison, content.names
    steps = content.read("steps")
    return {
        "layouts": content.looks,
        "experiments": choices(comparison),
        "cells": cells.cells(comparison, names, content.rows(CELL_PARTS), steps),
        "cost": cost.cost(comparison, names),
        "latencies": content.drawn("requests", latencies.latencies),
        "timeline": content.drawn("spans", timeline.timeline),
        "memory": memory.memory(content.runs, names),
        "capacity_gb": environment.capacity_gb(content.folders),
        "telemetry": content.drawn("telemetry", telemetry.telemetry),
        "tables": _tables(content),
    }


def _tables(content: Content) -> dict[str, object]:
    """What can be downloaded, beside what the charts show."""
    found = content.found
    compared = zip(found.comparison, COMPARED.data(found.comparison), strict=True)
    effects = zip(found.ablations, EFFECTS.data(found.ablations), strict=True)
    return {
        "comparison": _table({"layout": content.layout_of(c.cell), **row} for c, row in compared),
        "findings": _table(VERDICTS.data(found.verdicts)),
        "best": _table(BEST.data(found.best)),
        "statistics": _table(STATISTICS.data(found.statistics)),
        "sweep": _table(CURVES.data(found.curves)),
        "rates": _table(RATES.data(found.rates)),
        "ablations": _table({"layout": content.layout_of(e.cell), **row} for e, row in effects),
        "techniques": _table(TECHNIQUE_EFFECTS.data(found.techniques)),
        "kernels": _table(TOP_KERNELS.data(found.kernels)),
        "communication": _table(map(vars, content.operations)),
    }


def _table(rows: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """The columns that have a value in any row, and the rows with their values in that order."""
    kept = list(rows)
    names = kept[0] if kept else ()
    known = [name for name in names if any(row[name] is not None for row in kept)]
    return {"columns": known, "rows": [[_field(row[name]) for name in known] for row in kept]}


def _field(value: object) -> object:
    """A value as a CSV can hold it: a list becomes JSON text."""
    is_list = isinstance(value, (list, tuple))
    return json.dumps(plain(value)) if is_list else value


# -- the files of the page


@cache
def _templates() -> jinja2.Environment:
    """It keeps each template that it has compiled."""
    loader = jinja2.FunctionLoader(lambda name: (STATIC / name).read_text(encoding="utf-8"))
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _static(name: str) -> str:
    """A file of the page, without the reference to a source map that would have to be fetched."""
    text = (STATIC / name).read_text(encoding="utf-8")
    return text.split("//# sourceMappingURL=")[0].strip()
