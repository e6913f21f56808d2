"""What results say: by themselves, two of them side by side, or a new one held against a base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands import training
from orchestrator.report.output import Output, export_svg, say

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.analysis.comparing.findings import Findings
    from orchestrator.analysis.comparing.two_results import TwoResults


def compare(
    folders: Sequence[Path],
    objective: str | None,
    levels: Mapping[str, float],
    difference: float | None,
    svg: Path | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """The comparison of what is in `folders`, with verdicts and curves; two results with cells in
    common are laid side by side instead. svg, page: where to write a picture, and a page."""
    from orchestrator.analysis.comparing import findings
    from orchestrator.analysis.comparing.metrics import OBJECTIVES

    if trained := training.trained_at(folders):
        _refuse_of_serving({"--objective": objective, "--html": page, "--goodput, --slo": levels})
        said = training.findings(trained, difference)
        _shown(said.as_data, lambda console: training.draw(said, console), svg, as_json)
        return
    judged_by = objective or OBJECTIVES[0]

    def find() -> Findings:
        return findings.of_folders(folders, levels, difference=difference, objective=judged_by)

    results = _in_common(folders, levels)
    if results is not None:
        _refuse_of_one({"--objective": objective, "--difference": difference})
        _show_both(folders, results, find, svg, page, as_json)
        return
    if page is not None:
        raise click.UsageError(
            "--html lays two results side by side: give two folders with cells in common, or "
            "`orchestrator report` one"
        )

    found = find()
    _shown(found.as_data, lambda console: draw(found, judged_by, console), svg, as_json)


def gate(
    folders: Sequence[Path],
    asked: Sequence[str],
    allow_missing: bool,
    levels: Mapping[str, float],
    svg: Path | None,
    as_json: bool,
) -> int:
    """Hold the second of two results against the first. asked: gates as METRIC:RATIO, which are
    read before any result is."""
    from orchestrator.analysis.comparing import gate as comparing
    from orchestrator.analysis.comparing.gates import gate_of
    from orchestrator.analysis.comparing.two_results import two_results
    from orchestrator.report.two_results import render_gate

    gates = [gate_of(text) for text in asked]
    if len(folders) != 2:
        raise click.UsageError(
            f"a gate compares two results, BASE and NEW; {len(folders)} were given"
        )
    base, new = folders
    report = comparing.judge(two_results(base, new, levels), gates, allow_missing)
    _shown(report.as_data, lambda console: render_gate(report, console), svg, as_json)
    return report.status


def draw(found: Findings, objective: str, console: Console) -> None:
    """Print what results say."""
    from orchestrator.analysis.comparing import ablation, gaps
    from orchestrator.report import sweep, terminal
    from orchestrator.report.kernels import render_kernels
    from orchestrator.report.text import full

    said = {} if terminal.on_cpu(found.comparison) else found.sentences(objective)
    terminal.render(found.comparison, console, said)
    notes = [
        found.lacking(objective),
        *(one.sentence for one in found.unsettled),
        *(one.sentence for one in found.drifts),
        *gaps.sentences(found.missing),
        *(one.sentence for one in found.imported),
    ]
    shown = [note for note in notes if note]
    for note in shown:
        console.print(full(note), style="yellow", highlight=False)
    if shown:
        console.print()
    sweep.render(found.curves, console)
    for effect in found.ablations:
        console.print(full(ablation.sentence(effect)), highlight=False)
    sweep.render_techniques(found.techniques, console)
    render_kernels(found.kernels, console)
    sweep.render_rates(found.rates, console)


def _refuse_of_serving(options: Mapping[str, object]) -> None:
    """Raise a usage error for what means nothing where runs trained."""
    given = [name for name, one in options.items() if one]
    if given:
        raise click.UsageError(
            f"{' and '.join(given)} is of runs that serve, and these trained; leave it out"
        )


def _refuse_of_one(options: Mapping[str, object]) -> None:
    """Raise a usage error for what means nothing where two results are laid side by side."""
    given = [name for name, one in options.items() if one is not None]
    if given:
        raise click.UsageError(
            f"{' and '.join(given)} is of the verdicts within one result, and these two have cells "
            "in common, so they are laid side by side; give one of them"
        )


def _in_common(folders: Sequence[Path], levels: Mapping[str, float]) -> TwoResults | None:
    """The two results in `folders` if they are two and have cells in common; else None. One that
    holds a cell twice cannot be laid beside another, and that is said."""
    if len(folders) != 2:
        return None
    from orchestrator.analysis.comparing.two_results import CellTwice, two_results

    base, new = folders
    try:
        found = two_results(base, new, levels)
    except CellTwice as error:
        say(f"note: not laid side by side: {error}.", err=True)
        return None
    return found if found.have_cells_in_common else None


def _show_both(
    folders: Sequence[Path],
    results: TwoResults,
    find: Callable[[], Findings],
    svg: Path | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """Lay two results side by side. find: what each says by itself, which only the JSON has."""
    from orchestrator.analysis.comparing.changes import CHANGES, changes
    from orchestrator.report import two_results as report

    rows = changes(results)
    if page is not None:
        report.write_page(folders, rows, results.surroundings, page)
    _shown(
        lambda: find().as_data() | {"changes": CHANGES.data(rows)} | results.surroundings.as_data(),
        lambda console: report.render_changes(folders, rows, results.surroundings, console),
        svg,
        as_json,
    )


def _shown(
    data: Callable[[], object], render: Callable[[Console], None], svg: Path | None, as_json: bool
) -> None:
    """Print `data` as JSON, or what `render` draws; svg: also as a picture of a terminal."""
    if svg is not None:
        export_svg(render, svg)
    Output(as_json).show(data, render)
