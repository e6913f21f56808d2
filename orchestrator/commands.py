"""What each command does once click has read what was asked, and how it is printed.

Each function imports what it needs, so that `--help` answers at once and a command starts nothing
that it does not use. Functions that return a number return the exit status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.report.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.analysis.comparing.findings import Findings
    from orchestrator.cluster.connection import Cluster
    from orchestrator.experiment import Experiment
    from orchestrator.plan.deployments import PlannedDeployment, PlannedExperiment

SOME_FAILED, REGRESSED = 1, 1


@contextlib.contextmanager
def joined(asked: str | None) -> Iterator[Cluster | None]:
    """The cluster that is asked for, by flag or RAY_ADDRESS, joined once for all that a command
    does; None where there is none."""
    from orchestrator.cluster.address import address_of

    address = address_of(asked)
    if address is None:
        yield None
        return
    from orchestrator.cluster.connection import join

    with join(address) as cluster:
        yield cluster


def planned(experiment: Experiment, cluster: Cluster | None) -> PlannedExperiment:
    """The deployments and the devices they are planned for; prints what is remarkable."""
    from orchestrator.plan import planning
    from orchestrator.plan.deployments import PlannedExperiment
    from orchestrator.plan.remarks import remarks

    gpus = planning.find_gpus(experiment, cluster)
    device, topology = planning.choose_device(experiment, gpus)
    deployments = planning.plan_experiment(experiment, device, topology, cluster)
    for remark in remarks(experiment, deployments, topology, cluster):
        click.echo(f"note: {remark}", err=True)
    return PlannedExperiment(deployments, topology)


def show_plan(experiment: Experiment, planned: PlannedExperiment, out: Output) -> None:
    """Print what would be run. Raises UserError where a run would be refused for something else."""
    from orchestrator.report import dry_run
    from orchestrator.run.surroundings import check_surroundings

    check_surroundings(experiment)
    out.show(
        lambda: dry_run.as_data(planned.deployments, planned.topology),
        lambda console: dry_run.render(planned.deployments, planned.topology, console),
    )


def exit_status(planned: Sequence[PlannedDeployment], experiment: Experiment, folder: Path) -> int:
    """0 where every run that was needed has a result."""
    from orchestrator.run.jobs import all_completed

    return 0 if all_completed(planned, experiment, folder) else SOME_FAILED


def show_run(folder: Path, experiment: Experiment, trace: bool, out: Output) -> None:
    """Print the comparison and where the files are."""
    from orchestrator.analysis import outputs
    from orchestrator.analysis.comparing import findings
    from orchestrator.analysis.comparing.metrics import OBJECTIVES
    from orchestrator.store.store import Store

    found = findings.of_folders(
        [folder], experiment.goodput, experiment.until_ci, experiment.difference
    )
    notes, store = out.notes(), Store(folder)
    if not out.as_json:
        _draw(found, OBJECTIVES[0], notes)
    for line in outputs.samples(store.read("requests")) if experiment.save_detailed else ():
        notes.print(line, soft_wrap=True, highlight=False, markup=False)
    notes.print(f"Results: {folder}", soft_wrap=True, highlight=False)
    page = write_report(folder, notes)
    if out.as_json:
        places = {"results": str(folder), "report": str(page) if page else None}
        out.document(found.as_data() | places)
    if trace and store.read("spans"):
        _write_traces(folder, to_stderr=out.as_json)


def strategies(as_json: bool) -> None:
    """What is installed."""
    from orchestrator.plan.installed import installed
    from orchestrator.report.installed import render

    found = installed()
    Output(as_json).show(lambda: found, lambda console: render(found, console))


def explain(
    layouts: Sequence[str],
    model: str,
    dtype: str,
    memory: str | None,
    batch: int,
    prefill_tokens: int | None,
    as_json: bool,
) -> None:
    """Where layouts put a model. memory: of one GPU, as "141GB"; None: what is here."""
    from orchestrator.plan import fitting, planning
    from orchestrator.report import explain as report

    available = fitting.gpu_memory(memory)
    sketches = [planning.sketch(name, model, available) for name in layouts]
    explained = [
        report.explain(layout, shape, dtype, available, batch, prefill_tokens)
        for layout, shape in sketches
    ]

    def draw(console: Console) -> None:
        for one in explained:
            report.render(one, console)

    Output(as_json).show(lambda: [report.as_data(one) for one in explained], draw)


def compare(
    folders: Sequence[Path],
    objective: str,
    levels: Mapping[str, float],
    difference: float | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """The comparison of what is in `folders`, with verdicts and curves; also as a picture."""
    from orchestrator.analysis.comparing import findings

    found = findings.of_folders(folders, levels, difference=difference, objective=objective)
    if svg is not None:
        from orchestrator.report.terminal import export_svg

        export_svg(lambda console: _draw(found, objective, console), svg)
    Output(as_json).show(found.as_data, lambda console: _draw(found, objective, console))


def check_regression(base: Path, new: Path, fail_below: float, as_json: bool) -> int:
    """Whether a cell of `new` is slower than `fail_below` times that of `base`."""
    from orchestrator.analysis.comparing import regression
    from orchestrator.report.regression import render

    report = regression.of_folders(base, new, fail_below)
    Output(as_json).show(report.as_data, lambda console: render(report, console))
    return REGRESSED if report.regressions else 0


def export(folder: Path, format_: str, into: Path) -> None:
    """Write every table of results as one file, and print the files."""
    from orchestrator.analysis.load import tables
    from orchestrator.store.export import check_format, write_tables

    check_format(format_)
    for path in write_tables(tables(folder), format_, into):
        click.echo(path)


def pack(folder: Path, into: Path) -> None:
    """Pack the results at or below `folder`, and print the files."""
    from orchestrator.analysis.load import tables
    from orchestrator.store.export import pack as write
    from orchestrator.store.folders import find, is_experiment, manifest_text

    for one in find(folder):
        target = into if is_experiment(folder) else into / one.name
        for path in write(tables(one), manifest_text(one), target):
            click.echo(path)


def trace(root: Path) -> None:
    """Write the traces of all results under `root`."""
    from orchestrator.store.folders import find

    for folder in find(root):
        _write_traces(folder)


def report(folder: Path, page: Path | None, open_: bool) -> None:
    """Write the page of results; `open_`: show it."""
    from orchestrator.report.html import render_html

    path = render_html(folder, page)
    click.echo(path)
    if open_:
        click.launch(path.resolve().as_uri())


def runs(root: Path, as_json: bool) -> None:
    """What was run under `root`."""
    from dataclasses import asdict

    from orchestrator.report.runs import render
    from orchestrator.store.catalog import list_runs

    rows = list_runs(root)
    Output(as_json).show(
        lambda: [asdict(row) for row in rows], lambda console: render(rows, console)
    )


def calibrate(
    device: str,
    ranks: int | None,
    folder: Path | None,
    address: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure this node."""
    from orchestrator.node.calibrate import calibrate as measure
    from orchestrator.report import fabric_tables

    found = measure(device, ranks, folder, address, quick)
    Output(as_json).show(
        lambda: fabric_tables.as_data(found), lambda console: fabric_tables.render(found, console)
    )


def doctor(address: str | None, as_json: bool) -> int:
    """Check this node."""
    from dataclasses import asdict

    from orchestrator.cluster.address import address_of
    from orchestrator.node import facts
    from orchestrator.node.doctor import FAIL, examine
    from orchestrator.report.doctor import render

    checks = examine(facts.gather(address_of(address)))
    Output(as_json).show(
        lambda: [asdict(check) for check in checks], lambda console: render(checks, console)
    )
    return SOME_FAILED if any(check.status == FAIL for check in checks) else 0


def write_report(folder: Path, console: Console) -> Path | None:
    """Write report.html and say where; a report that cannot be made is None and takes nothing from
    the results."""
    try:
        from orchestrator.report.html import render_html

        path = render_html(folder)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        click.echo(f"note: the report could not be made: {why}", err=True)
        return None
    console.print(f"Report: {path}", soft_wrap=True, highlight=False)
    return path


def _write_traces(folder: Path, to_stderr: bool = False) -> None:
    from orchestrator.report.trace import write_traces

    for path in write_traces(folder):
        click.echo(path, err=to_stderr)


def _draw(found: Findings, objective: str, console: Console) -> None:
    from orchestrator.analysis.comparing import ablation
    from orchestrator.report import sweep, terminal

    terminal.render(found.comparison, console, found.sentences(objective))
    notes = [*(one.sentence for one in found.unsettled), *(one.sentence for one in found.drifts)]
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    sweep.render(found.curves, console)
    for effect in found.ablations:
        console.print(ablation.sentence(effect), highlight=False)
