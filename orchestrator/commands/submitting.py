"""The run of an experiment: from what was asked to where its results are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.address import address_of, is_jobs_address
from orchestrator.commands import SOME_FAILED, training
from orchestrator.commands.comparing import draw
from orchestrator.commands.results import write_report, write_traces
from orchestrator.errors import UserError
from orchestrator.report.output import Output, say

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.analysis.load import Results
    from orchestrator.cluster.connection import Cluster
    from orchestrator.experiment import Experiment
    from orchestrator.plan.deployments import PlannedDeployment, PlannedExperiment


@dataclass(frozen=True, slots=True)
class Flags:
    """What is asked of the command, and not of the experiment.

    dry_run: show what would be run. no_wait: leave when the job is there. trace: write traces.
    force: make all runs anew. show_all: show what earlier commands asked for, too.
    """

    dry_run: bool = False
    no_wait: bool = False
    trace: bool = False
    force: bool = False
    show_all: bool = False

    @property
    def of_the_job(self) -> tuple[str, ...]:
        """Those that a job gets too."""
        words = {
            "--dry-run": self.dry_run,
            "--trace": self.trace,
            "--force": self.force,
            "--all": self.show_all,
        }
        return tuple(word for word, is_given in words.items() if is_given)


def flags_of(options: dict[str, Any]) -> Flags:
    """The flags, taken out of the options."""
    return Flags(**{one.name: options.pop(one.name, False) for one in fields(Flags)})


def submit(experiment: Experiment, flags: Flags, out: Output) -> int:
    """Carry out what was asked, or show what that would be, here or as a job. Returns the exit
    status."""
    _check(experiment, flags)
    address = address_of(experiment.address)
    if is_jobs_address(address):
        return as_job(experiment, address, flags, out)
    if flags.no_wait:
        raise UserError("--no-wait is for a job; give --address http://HOST:8265 too")
    with joined(experiment.address) as cluster:
        plans = planned(experiment, cluster, flags)
        if flags.dry_run:
            show_plan(experiment, plans, out)
            return 0
        if experiment.find_rate:
            return find_rates(experiment, plans, cluster, out)
        folder = run(experiment, plans, cluster, out)
    show_run(folder, experiment, plans, flags, out)
    return exit_status(plans.deployments, experiment, folder)


def _check(experiment: Experiment, flags: Flags) -> None:
    """Raise UserError for a flag that would do nothing."""
    from orchestrator.experiment.places import uri_of

    if flags.trace and experiment.workload == "train":
        raise UserError("--trace is of runs that serve, and no spans are kept of training")
    if flags.force and experiment.find_rate:
        raise UserError(
            "--force is of a fixed load; for another search give --find-rate another --result-dir"
        )
    if flags.force and experiment.result_dir and uri_of(experiment.result_dir):
        raise UserError("--force moves a folder of this machine; give another --result-dir")


def as_job(experiment: Experiment, address: str, flags: Flags, out: Output) -> int:
    """The same on a cluster, by a driver there. Returns the exit status. Raises UserError for
    --json: a job's log is no document."""
    from orchestrator.commands import jobs

    if out.as_json:
        raise UserError(
            "--json is not for a job, whose log has notes too; fetch its results, and give "
            "--json to `compare`"
        )
    return jobs.submit(experiment, address, flags.of_the_job, wait=not flags.no_wait)


@contextlib.contextmanager
def joined(asked: str | None) -> Iterator[Cluster | None]:
    """The cluster that is asked for, by flag or RAY_ADDRESS, joined once for all that a command
    does; None where there is none."""
    address = address_of(asked)
    if address is None:
        yield None
        return
    from orchestrator.cluster.connection import join

    with join(address) as cluster:
        yield cluster


def planned(experiment: Experiment, cluster: Cluster | None, flags: Flags) -> PlannedExperiment:
    """The deployments and the devices they are planned for; prints what is remarkable of them and
    of the source that runs. Raises UserError where a run would be refused, before any of that.
    Earlier results are set aside where all is to be made anew."""
    from orchestrator.plan import planning
    from orchestrator.plan.deployments import PlannedExperiment
    from orchestrator.plan.remarks import remarks
    from orchestrator.report.text import full
    from orchestrator.run.source import remark as of_source
    from orchestrator.run.source import source
    from orchestrator.run.surroundings import check_surroundings
    from orchestrator.store.folders import folder_of, set_aside
    from orchestrator.store.spool import restore
    from orchestrator.store.store import Store

    if not flags.dry_run:
        restore(folder_of(experiment))
    gpus = planning.find_gpus(experiment, cluster)
    device, topology = planning.choose_device(experiment, gpus, cluster)
    deployments = planning.plan_experiment(experiment, device, topology, cluster)
    if flags.force and not flags.dry_run and (kept := set_aside(folder_of(experiment))):
        say(
            f"note: the results that were there are kept in {kept}; to go on, leave out --force.",
            err=True,
        )
    check_surroundings(Store(folder_of(experiment)), experiment, deployments, cluster)
    for remark in (of_source(source()), *remarks(experiment, deployments, topology, cluster)):
        if remark:
            say(f"note: {full(remark)}", err=True)
    return PlannedExperiment(deployments, topology)


def show_plan(experiment: Experiment, planned: PlannedExperiment, out: Output) -> None:
    """Print what would be run."""
    if experiment.workload == "train":
        return training.show_plan(planned.deployments, out)
    from orchestrator.report import dry_run
    from orchestrator.run.surroundings import settled_counts
    from orchestrator.store.folders import folder_of
    from orchestrator.store.store import Store

    counts = settled_counts(Store(folder_of(experiment)))
    deployments = [one.settled(counts) for one in planned.deployments]
    out.show(
        lambda: dry_run.as_data(deployments, planned.topology),
        lambda console: dry_run.render(deployments, planned.topology, console),
    )


def run(
    experiment: Experiment, planned: PlannedExperiment, cluster: Cluster | None, out: Output
) -> Path:
    """Run what has no result yet. Returns the folder of the results."""
    from orchestrator.cluster.hardware import watched_gpus
    from orchestrator.report.progress import RunProgress
    from orchestrator.run.driver import run_experiment

    with watched_gpus() as devices, RunProgress(out.progress(), devices) as progress:
        return run_experiment(planned.deployments, experiment, progress, cluster)


def find_rates(
    experiment: Experiment, planned: PlannedExperiment, cluster: Cluster | None, out: Output
) -> int:
    """Search the highest rate that meets the SLO, cell by cell, and print what was found. Returns
    the exit status."""
    from orchestrator.analysis.goodput import RATES
    from orchestrator.cluster.hardware import watched_gpus
    from orchestrator.experiment.places import place
    from orchestrator.plan.planning import plan_experiment
    from orchestrator.report import sweep
    from orchestrator.report.progress import RunProgress
    from orchestrator.run.rates import Search

    device = planned.deployments[0].plan.device

    def plan(asked: Experiment) -> tuple[PlannedDeployment, ...]:
        return plan_experiment(asked, device, planned.topology, cluster)

    with watched_gpus() as devices, RunProgress(out.progress(), devices) as progress:
        search = Search(experiment, plan, progress, cluster)
        found = search.run(planned.deployments)
    notes = out.notes()
    if not out.as_json:
        sweep.render_rates(found, notes)
    notes.print(f"Results: {place(search.root)}", soft_wrap=True, highlight=False)
    page = write_report(search.root, notes)
    if out.as_json:
        places = {"results": place(search.root), "report": str(page) if page else None}
        out.document({"rates": RATES.data(found)} | places)
    return SOME_FAILED if any(one.reason for one in found) else 0


def exit_status(planned: Sequence[PlannedDeployment], experiment: Experiment, folder: Path) -> int:
    """0 where every run that was needed has a result."""
    from orchestrator.run.jobs import all_completed

    return 0 if all_completed(planned, experiment, folder) else SOME_FAILED


def show_run(
    folder: Path, experiment: Experiment, planned: PlannedExperiment, flags: Flags, out: Output
) -> None:
    """Print the comparison of the cells that were asked for, and where the files are."""
    if experiment.workload == "train":
        trained = training.findings([folder], experiment.difference)
        if not out.as_json:
            training.draw(trained, out.notes())
        _show_places(folder, trained.as_data(), out)
        return
    from orchestrator.analysis import outputs
    from orchestrator.analysis.comparing import findings
    from orchestrator.analysis.comparing.metrics import OBJECTIVES
    from orchestrator.analysis.load import load
    from orchestrator.store.store import Store

    results = load([folder], experiment.levels)
    asked = results if flags.show_all else _asked(results, planned)
    found = findings.of_results(asked, experiment.until_ci, experiment.difference)
    notes, store = out.notes(), Store(folder)
    if not out.as_json:
        draw(found, OBJECTIVES[0], notes)
        _say_left_out(results, asked, notes)
    for line in outputs.samples(store.read("requests")) if experiment.save_detailed else ():
        notes.print(line, highlight=False)
    _show_places(folder, found.as_data(), out)
    if flags.trace and store.read("spans"):
        write_traces(folder, to_stderr=out.as_json)


def _asked(results: Sequence[Results], planned: PlannedExperiment) -> list[Results]:
    """Of the results those of cells that this command asked for."""
    names = {cell.cell.name for one in planned.deployments for cell in one.cells}
    return [
        replace(
            one,
            runs=[run for run in one.runs if run.cell.name in names],
            manifest={**one.manifest, "cells": sorted(names)},
        )
        for one in results
    ]


def _say_left_out(all_: Sequence[Results], shown: Sequence[Results], notes: Console) -> None:
    cells = [{run.cell for one in some for run in one.runs} for some in (all_, shown)]
    if left_out := len(cells[0] - cells[1]):
        were = "cell of an earlier command is" if left_out == 1 else "cells of earlier commands are"
        notes.print(f"{left_out} {were} not shown; --all does.", style="dim", highlight=False)


def _show_places(folder: Path, found: dict[str, object], out: Output) -> None:
    """Write the page and print where the files are, in JSON beside what was found."""
    from orchestrator.experiment.places import place

    notes = out.notes()
    notes.print(f"Results: {place(folder)}", soft_wrap=True, highlight=False)
    page = write_report(folder, notes)
    if out.as_json:
        out.document(found | {"results": place(folder), "report": str(page) if page else None})
