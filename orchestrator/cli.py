"""The command `orchestrator`: parses and prints, decides nothing.

Only click is imported here at the top, so that `--help` answers at once; each command imports what
it needs.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from orchestrator.options import OneLineErrors, TakesLevels, experiment_options, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.analysis.findings import Findings
    from orchestrator.experiment import Experiment
    from orchestrator.plan.deployments import PlannedDeployment
    from strategies import Topology

SOME_FAILED, REGRESSED = 1, 1
OBJECTIVES = (
    "throughput",
    "latency",
    "per-gpu",
    "goodput",
    "energy",
)  # those of orchestrator.analysis.verdicts
PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="shard-orchestrator", prog_name="orchestrator")
def main() -> None:
    """Compare parallel layouts of one model on the same GPUs: which is best, and what does
    communication cost?"""


@main.command(cls=TakesLevels)
@experiment_options
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same fields in YAML; flags win.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print cells and placements and whether they fit; take nothing."
)
@click.option(
    "--trace", is_flag=True, help="Also write what each rank did in a few steps, for Perfetto."
)
@json_option
def submit(
    config: Path | None,
    dry_run: bool,
    trace: bool,
    as_json: bool,
    metadata: tuple[str, ...],
    **options: Any,
) -> None:
    """Run one model under several layouts and compare them. With --json, progress, notes and paths
    go to stderr."""
    from orchestrator.config import load_experiment
    from orchestrator.plan import planning

    flags = {name: value for name, value in options.items() if value is not None and value != ()}
    if metadata:
        flags["metadata"] = dict(_pair(text) for text in metadata)
    experiment = load_experiment(config, flags)
    device, topology = planning.choose_device(experiment, _gpus(experiment))
    planned = planning.plan(experiment, device, topology)
    for remark in planning.remarks(experiment, planned, topology):
        click.echo(f"note: {remark}", err=True)
    if dry_run:
        from orchestrator.report import dry_run as plan

        _check_surroundings(experiment)
        _print_json(plan.as_data(planned, topology)) if as_json else plan.render(
            planned, topology, _console()
        )
        return
    raise SystemExit(_run(experiment, planned, trace, as_json))


@main.command()
@json_option
def strategies(as_json: bool) -> None:
    """List the strategies and engines that are installed."""
    from orchestrator.report.installed import installed, render

    found = installed()
    _print_json(found) if as_json else render(found, _console())


@main.command()
@click.argument("layouts", nargs=-1, required=True, metavar="LAYOUT...")
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="NAME|FOLDER",
    help="A preset or a folder with a config.json.",
)
@click.option(
    "--dtype",
    default="bfloat16",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
)
@click.option("--memory", metavar="141GB", help="Memory of one GPU. [what is here]")
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests in the decode step shown.",
)
@click.option(
    "--prefill-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most prompt tokens in one forward pass.",
)
@json_option
def explain(
    layouts: tuple[str, ...],
    model: str,
    dtype: str,
    memory: str | None,
    batch: int,
    prefill_tokens: int | None,
    as_json: bool,
) -> None:
    """Show where a layout puts a model, what fits beside it and what a decode step sends."""
    from orchestrator.cluster import hardware
    from orchestrator.plan import planning
    from orchestrator.report import explain as report
    from orchestrator.units import parse_bytes

    available = parse_bytes(memory) if memory else hardware.local_topology("cuda").memory_bytes
    sketches = [planning.sketch(name, model, available) for name in layouts]
    explained = [
        report.explain(layout, shape, dtype, available, batch, prefill_tokens)
        for layout, shape in sketches
    ]
    if as_json:
        _print_json([report.as_data(one) for one in explained])
        return
    for one in explained:
        report.render(one, _console())


@main.command(cls=TakesLevels)
@click.argument(
    "result_dirs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULT_DIR..."
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default=OBJECTIVES[0],
    show_default=True,
    help="Of the verdicts.",
)
@click.option(
    "--goodput",
    multiple=True,
    metavar="LEVEL...",
    help="Service levels in ms, as in `ttft:2000 tpot:200`. [the runs']",
)
@click.option(
    "--fail-below",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATIO",
    help="BASE NEW: fail below, as 0.95.",
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="As a picture of a terminal.",
)
@json_option
def compare(
    result_dirs: tuple[Path, ...],
    objective: str,
    goodput: tuple[str, ...],
    fail_below: float | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Print the comparison of results again, with verdicts and curves. BASE NEW --fail-below 0.95:
    is the new result slower?"""
    from orchestrator.analysis import findings
    from orchestrator.config import load_experiment

    if fail_below is not None:
        _refuse_beside("--fail-below", "objective", "goodput", "svg")
        raise SystemExit(_check_regression(result_dirs, fail_below, as_json))
    levels = load_experiment(None, {"goodput": goodput}).goodput
    found = findings.of_folders(result_dirs, levels)
    if svg is not None:
        from orchestrator.report.terminal import export_svg

        export_svg(lambda console: _show(found, objective, console), svg)
    if as_json:
        _print_json(found.as_data())
        return
    _show(found, objective, _console())


@main.command()
@click.argument("result_dir", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    default="parquet",
    show_default=True,
    metavar="FORMAT",
    help="parquet, csv or arrow.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="[RESULT_DIR/export]")
def export(result_dir: Path, format_: str, out: Path | None) -> None:
    """Merge the parts of every table into one file each."""
    from orchestrator.store import results

    for path in results.export(result_dir, format_, out or result_dir / "export"):
        click.echo(path)


@main.command()
@click.argument("result_dir", type=click.Path(path_type=Path))
def trace(result_dir: Path) -> None:
    """Write what each rank did in a few steps, for Perfetto."""
    from orchestrator.store import results

    for folder in results.find(result_dir):
        _write_traces(folder)


@main.command()
@click.argument("result_dir", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="[RESULT_DIR/report.html]",
)
@click.option("--open", "open_", is_flag=True, help="Show it in the browser.")
def report(result_dir: Path, out: Path | None, open_: bool) -> None:
    """Write results as one HTML page with charts, which opens offline."""
    from orchestrator.report.html import render_html

    path = render_html(result_dir, out)
    click.echo(path)
    if open_:
        click.launch(path.resolve().as_uri())


@main.command()
@click.argument("root", default="results", type=click.Path(path_type=Path))
@json_option
def runs(root: Path, as_json: bool) -> None:
    """List what was run under ROOT."""
    from orchestrator.report.runs import render
    from orchestrator.store import results

    rows = results.list_runs(root)
    _print_json(rows) if as_json else render(rows, _console())


@main.command()
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cuda", "cpu"])
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    metavar="N",
    help="GPUs or CPU workers. [all GPUs of a node; 2 to 4 workers]",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="[results/fabric-HOST]")
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="A Ray cluster that is running. [RAY_ADDRESS, else a local one]",
)
@click.option("--quick", is_flag=True, hidden=True, help="A few small sizes: to see that it works.")
@json_option
def calibrate(
    device: str,
    ranks: int | None,
    out: Path | None,
    address: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure what this node can do: memory, matrix products, collectives. `submit` sets results
    beside it."""
    from orchestrator.node import calibrate as calibration
    from orchestrator.report import calibration as report

    found = calibration.calibrate(device, ranks, out, address, quick)
    _print_json(report.as_data(found)) if as_json else report.render(found, _console())


@main.command()
@click.option(
    "--address", metavar="HOST:PORT", help="A Ray cluster that should answer. [RAY_ADDRESS]"
)
@json_option
def doctor(address: str | None, as_json: bool) -> None:
    """Check whether this node will give good numbers, and say what to do where it will not."""
    from dataclasses import asdict

    from orchestrator.node import doctor as doctors
    from orchestrator.node import facts
    from orchestrator.report.doctor import render

    checks = doctors.examine(facts.gather(address or os.environ.get("RAY_ADDRESS")))
    _print_json([asdict(check) for check in checks]) if as_json else render(checks, _console())
    raise SystemExit(SOME_FAILED if any(check.status == doctors.FAIL for check in checks) else 0)


def _run(
    experiment: Experiment, planned: Sequence[PlannedDeployment], trace: bool, as_json: bool
) -> int:
    """Run, print the comparison and where the files are; the exit status says whether every run has
    a result."""
    from orchestrator.analysis import findings, outputs
    from orchestrator.experiment import Run
    from orchestrator.report import terminal
    from orchestrator.run.driver import run_experiment
    from orchestrator.store.results import Store

    console = _console(stderr=as_json)
    with terminal.RunProgress(console) as progress:
        folder = run_experiment(planned, experiment, progress)
    found, store = (
        findings.of_folders([folder], experiment.goodput, experiment.until_ci),
        Store(folder),
    )
    if not as_json:
        _show(found, OBJECTIVES[0], console)
    for line in outputs.samples(store.read("requests")) if experiment.save_detailed else ():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"Results: {folder}", soft_wrap=True, highlight=False)
    report = _write_report(folder, console)
    if as_json:
        _print_json(
            found.as_data() | {"results": str(folder), "report": str(report) if report else None}
        )
    if trace and store.read("spans"):
        _write_traces(folder, to_stderr=as_json)
    runs = [
        Run(cell.cell, index)
        for one in planned
        for cell in one.cells
        for index in range(experiment.run_limit)
    ]
    asked = [
        run for run in runs if run.index < experiment.num_runs or store.summary_of(run)
    ]  # the others were not needed
    return 0 if all(map(store.is_completed, asked)) else SOME_FAILED


def _write_traces(folder: Path, to_stderr: bool = False) -> None:
    from orchestrator.errors import UserError
    from orchestrator.report.trace import write_traces

    try:
        paths = write_traces(folder)
    except OSError as error:
        raise UserError(
            f"traces cannot be written to {folder / 'traces'}: {error.strerror}"
        ) from error
    for path in paths:
        click.echo(path, err=to_stderr)


def _write_report(folder: Path, console: Console) -> Path | None:
    """Write report.html and say where; a report that cannot be made is None and takes nothing from
    the results."""
    try:
        from orchestrator.report.html import render_html

        path = render_html(folder)
    except Exception as error:
        click.echo(
            "note: the report could not be made: "
            f"{' '.join(str(error).split()) or type(error).__name__}",
            err=True,
        )
        return None
    console.print(f"Report: {path}", soft_wrap=True, highlight=False)
    return path


def _show(found: Findings, objective: str, console: Console) -> None:
    from orchestrator.analysis import ablation
    from orchestrator.report import sweep, terminal

    terminal.render(found.comparison, console, found.sentences(objective))
    for cell in found.unsettled.to_pylist():
        console.print(cell["sentence"], style="yellow", highlight=False, markup=False)
    sweep.render(found.curves, console)
    for effect in found.ablations.to_pylist():
        console.print(ablation.sentence(effect), highlight=False)


def _check_regression(folders: Sequence[Path], fail_below: float, as_json: bool) -> int:
    from orchestrator.analysis import regression
    from orchestrator.report.regression import render

    if len(folders) != 2:
        raise click.UsageError(
            f"--fail-below compares two results, BASE and NEW; {len(folders)} were given"
        )
    report = regression.of_folders(folders[0], folders[1], fail_below)
    _print_json(report.as_data()) if as_json else render(report, _console())
    return REGRESSED if report.regressions else 0


def _refuse_beside(flag: str, *names: str) -> None:
    """Raise a usage error where one of the options `names` was given: `flag` knows none of them."""
    context = click.get_current_context()
    given = [
        f"--{name}"
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"{flag} judges tok/s alone and prints a line per cell; leave out {', '.join(given)}"
        )


def _gpus(experiment: Experiment) -> Topology:
    """The GPUs of the cluster that is asked for, else of this machine; asking takes none of
    them."""
    from orchestrator.cluster import hardware
    from strategies.shapes import Topology

    if experiment.device == "cpu":
        return Topology(())
    if experiment.address is None and not os.environ.get("RAY_ADDRESS"):
        return hardware.local_topology("cuda")
    from orchestrator.cluster.connection import connect

    with connect(experiment.address, "cuda", 0) as cluster:
        return cluster.topology()


def _check_surroundings(experiment: Experiment) -> None:
    """Raises UserError where a run would be refused for what is not of its plan: the calibration,
    old results, the cluster."""
    from orchestrator.node import fabric
    from orchestrator.store import results

    fabric.look_up(experiment.fabric, experiment.result_dir)
    results.check_version(results.folder_of(experiment))
    address = experiment.address or os.environ.get("RAY_ADDRESS")
    if address and experiment.device == "cpu":  # for GPUs, the cluster was asked already
        from orchestrator.cluster.connection import check_address

        check_address(address)


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise click.UsageError(f"--metadata '{text}' is not KEY=VALUE")
    return key, value


def _print_json(data: Any) -> None:
    from orchestrator.report import document

    click.echo(document.text(data))


def _console(stderr: bool = False) -> Console:
    """Plain and wide where nobody watches; what the stream's encoding lacks is a question mark."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


if __name__ == "__main__":
    main()
