"""The command `orchestrator`: reads what was asked. What is done is in `orchestrator.commands`.

Only click is imported here at the top, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.jobs import COMMANDS as JOB_COMMANDS
from orchestrator.cli.runs import COMMANDS as RUN_COMMANDS
from orchestrator.cli.runs import RESULTS
from orchestrator.commands import (
    audits,
    comparing,
    exporting,
    importing,
    node,
    predicting,
    recommending,
    results,
    submitting,
)
from orchestrator.commands.boundary import OneLineErrors, TakesLevels
from orchestrator.commands.places import beside
from orchestrator.options import (
    asking_options,
    compare_options,
    explain_options,
    json_option,
    machine_options,
    plan_options,
    taking,
)
from orchestrator.options.audit import audit_options
from orchestrator.options.importing import EXPORT_OPTIONS, IMPORT_OPTIONS
from orchestrator.options.node import CALIBRATE_OPTIONS, DOCTOR_OPTIONS
from orchestrator.options.places import FILE, PATH
from orchestrator.options.recommending import CROSSOVER_OPTIONS, MATRIX_OPTIONS, RECOMMEND_OPTIONS
from orchestrator.options.switches import technique_option
from orchestrator.report.output import Output


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="shard-orchestrator", prog_name="orchestrator")
def main() -> None:
    """Compare parallel layouts of one model on the same GPUs: which is best, and what does
    communication cost?"""


@main.command(cls=TakesLevels)
@asking_options
@machine_options
@click.option(
    "--trace", is_flag=True, help="Also write what each rank did in a few steps, for Perfetto."
)
@json_option
def submit(config: Path | None, as_json: bool, **options: Any) -> None:
    """Run one model under several layouts and compare them. With --json, progress, notes and paths
    go to stderr. With --dry-run and --gpu, predict them on GPUs that need not be here."""
    from orchestrator.config import given, load_experiment

    machines, flags = predicting.machines_of(options), submitting.flags_of(options)
    experiment = load_experiment(config, given(**options))
    if machines is not None and not flags.dry_run:
        raise click.UsageError("--gpu is about GPUs that need not be here; give --dry-run too")
    if machines is not None:
        return predicting.plan(experiment, machines, experiment.strategy, Output(as_json), True)
    raise SystemExit(submitting.submit(experiment, flags, Output(as_json)))


@main.command(cls=TakesLevels)
@technique_option
@asking_options
@json_option
def ablate(config: Path | None, as_json: bool, **options: Any) -> None:
    """Run each cell as `submit` does, and again without each technique, in turns: what does it
    do?"""
    from orchestrator.config import given, load_experiment

    flags, fields = submitting.flags_of(options), given(**options)
    experiment = load_experiment(config, fields)
    if not experiment.technique:
        experiment = load_experiment(config, {**fields, "technique": "all"})
    raise SystemExit(submitting.submit(experiment, flags, Output(as_json)))


@main.command()
@plan_options
@json_option
def plan(as_json: bool, strategy: tuple[str, ...], **options: Any) -> None:
    """Predict layouts on GPUs that need not be here, and rank them. Nothing is run."""
    from orchestrator.config import given, load_experiment

    machines = predicting.machines_of(options)
    flags = predicting.seated(given(strategy=strategy, **options))
    experiment = load_experiment(None, flags)
    layouts = experiment.strategy if strategy else ()
    predicting.plan(experiment, machines, layouts, Output(as_json))


@main.command(cls=TakesLevels)
@taking(RECOMMEND_OPTIONS)
@json_option
def recommend(as_json: bool, **options: Any) -> None:
    """Which GPUs and layout meet limits on latency: the fewest, and the cheapest. Nothing is
    run."""
    _search(recommending.recommend, as_json, **options)


@main.command()
@taking(CROSSOVER_OPTIONS)
@json_option
def crossover(as_json: bool, **options: Any) -> None:
    """Above which bandwidth of the link tensor parallelism beats a pipeline. Nothing is run."""
    _search(recommending.crossover, as_json, **options)


@main.command(cls=TakesLevels)
@taking(MATRIX_OPTIONS)
@json_option
def matrix(as_json: bool, **options: Any) -> None:
    """The best layout and the fewest GPUs for each load, model and kind of GPU. Nothing is run."""
    _search(recommending.matrix, as_json, **options)


@main.command()
@json_option
def strategies(as_json: bool) -> None:
    """List the strategies, engines and formats of datasets that are installed."""
    node.strategies(as_json)


@main.command()
@click.argument("layouts", nargs=-1, required=True, metavar="LAYOUT...")
@explain_options
@json_option
def explain(
    layouts: tuple[str, ...],
    model: str,
    memory: str | None,
    batch: int | None,
    chunked_prefill_size: int | None,
    gpus_per_node: int | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Show where a layout puts a model, what fits beside it and what a decode step sends; or what
    training takes and sends."""
    from orchestrator.config import given, load_experiment

    asked = load_experiment(None, given(**fields))
    sizes = memory, batch, chunked_prefill_size, gpus_per_node
    names = [name.strip() for text in layouts for name in text.split(",")]
    node.explain(names, model, asked, *sizes, as_json)


@main.command()
@audit_options
@json_option
def audit(file: Path | None, phrases: tuple[str, ...], as_json: bool, **given: str | None) -> None:
    """Say whether claimed figures are possible, by arithmetic alone. docs/audit.md has the fields
    of a claim."""
    audits.audit(file, phrases, {name: one for name, one in given.items() if one}, as_json)


@main.command(cls=TakesLevels)
@click.argument("result_dirs", nargs=-1, required=True, type=RESULTS, metavar="RESULT_DIR...")
@compare_options
@json_option
def compare(
    result_dirs: tuple[Path, ...],
    objective: str | None,
    goodput: tuple[str, ...],
    slo: tuple[str, ...],
    gate: tuple[str, ...],
    fail_below: float | None,
    difference: float | None,
    allow_missing: bool,
    html: Path | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Print the comparison of results again, with verdicts and curves. Two results with cells in
    common are laid side by side; with --gate the second must not be worse than the first."""
    from orchestrator.config import load_experiment

    gates = (*gate, *((f"output_throughput:{fail_below}",) if fail_below else ()))
    levels = load_experiment(None, {"goodput": goodput, "slo": slo}).levels
    if gates:
        _refuse(
            "--gate judges cell by cell and prints a line for each",
            "objective",
            "difference",
            "html",
        )
        status = comparing.gate(result_dirs, gates, allow_missing, levels, svg, as_json)
        raise SystemExit(status)
    if allow_missing:
        raise click.UsageError("--allow-missing is of a gate; give --gate METRIC:RATIO too")
    comparing.compare(result_dirs, objective, levels, difference, svg, html, as_json)


@main.command()
@click.argument("result_dir", type=RESULTS)
@taking(EXPORT_OPTIONS)
def export(
    result_dir: Path, format_: str | None, save_detailed: bool, track: str | None, out: Path | None
) -> None:
    """Write results for other tools: tables, the JSON of other benchmarks, or to a tracker."""
    into = out or beside(result_dir, "export")
    exporting.export(result_dir, format_, into, save_detailed, track)


@main.command("import")
@taking(IMPORT_OPTIONS)
def import_(
    files: tuple[Path, ...], result_dir: Path | None, out: Path | None, **named: str | None
) -> None:
    """Take results of `vllm bench serve --save-result` or AIPerf, or those of `export`, as an
    experiment to compare against."""
    importing.import_results(files, named, result_dir, out)


@main.command()
@click.argument("result_dir", type=RESULTS)
@click.option("--out", type=PATH, metavar="DIR", help="[RESULT_DIR/packed]")
def pack(result_dir: Path, out: Path | None) -> None:
    """Put results into one small file a table, to be handed to somebody. Every command reads them
    as they are."""
    results.pack(result_dir, out or beside(result_dir, "packed"))


@main.command()
@click.argument("packed", type=RESULTS, nargs=-1, required=True)
@click.option("--result-dir", type=PATH, metavar="DIR", help="[results]")
@click.option("--engine", multiple=True, metavar="NAME", help="Take its runs alone. Repeat.")
@click.option("--strategy", multiple=True, metavar="NAME", help="Take its runs alone. Repeat.")
def unpack(packed: tuple[Path, ...], result_dir: Path | None, **named: tuple[str, ...]) -> None:
    """Make packed results a folder to which runs can be added: `submit` with the same DIR goes on
    with them. Starts of one experiment that were made apart, as on two nodes, get one folder."""
    results.unpack(packed, result_dir, **named)


@main.command()
@click.argument("result_dir", type=RESULTS)
def trace(result_dir: Path) -> None:
    """Write what each rank did in a few steps, for Perfetto."""
    results.trace(beside(result_dir, ""))


@main.command()
@click.argument("result_dir", type=RESULTS)
@json_option
def recompute(result_dir: Path, as_json: bool) -> None:
    """Take the steps of observed runs apart again, from all their spans: is what was kept equal?
    Exits with 1 where it is not."""
    raise SystemExit(results.recompute(result_dir, as_json))


@main.command()
@click.argument("result_dir", type=RESULTS)
@click.option("--out", type=FILE, metavar="FILE", help="[RESULT_DIR/report.html]")
@click.option("--open", "open_", is_flag=True, help="Show it in the browser.")
def report(result_dir: Path, out: Path | None, open_: bool) -> None:
    """Write results as one HTML page with charts, which opens offline."""
    results.report(result_dir, out or beside(result_dir, "report.html"), open_)


@main.command()
@taking(CALIBRATE_OPTIONS)
@json_option
def calibrate(out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure what this node can do: memory, matrix products, collectives. `submit` sets results
    beside it."""
    node.calibrate(**options, folder=out, as_json=as_json)


@main.command()
@taking(DOCTOR_OPTIONS)
@json_option
def doctor(address: str | None, as_json: bool) -> None:
    """Check whether this node will give good numbers, and say what to do where it will not."""
    raise SystemExit(node.doctor(address, as_json))


for command in (*JOB_COMMANDS, *RUN_COMMANDS):
    main.add_command(command)


def _search(finding: Callable[..., None], as_json: bool, **options: Any) -> None:
    """Search as flags alone ask for. finding: a command of `recommending`."""
    from orchestrator.config import given, load_experiment

    search = recommending.search_of(options)
    experiment = load_experiment(None, predicting.seated(given(**options)))
    finding(search, experiment, Output(as_json))


def _refuse(why: str, *names: str) -> None:
    """Raise a usage error where one of the options `names` was given."""
    context = click.get_current_context()
    given = [f"--{name}" for name in names if context.params[name] is not None]
    if given:
        raise click.UsageError(f"{why}; leave out {', '.join(given)}")
