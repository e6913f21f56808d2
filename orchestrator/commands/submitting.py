"""The run of an experiment: from what was asked to where its results are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster.address import address_of, is_jobs_address
from orchestrator.commands import SOME_FAILED, training
from orchestrator.commands.comparing import draw
from orchestrator.commands.results import write_report, write_traces
from orchestrator.errors import UserError
from orchestrator.report.output import Output, say

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster
    from orchestrator.experiment import Experiment
    from orchestrator.plan.deployments import PlannedDeployment, PlannedExperiment


def submit(experiment: Experiment, dry_run: bool, no_wait: bool, trace: bool, out: Output) -> int:
    """Carry out what was asked, or show what that would be, here or as a job. Returns the exit
    status."""
    if trace and experiment.workload == "train":
        raise UserError("--trace is of runs that serve, and no spans are kept of training")
    address = address_of(experiment.address)
    if is_jobs_address(address):
        return as_job(experiment, address, dry_run, no_wait, trace, out)
    if no_wait:
        raise UserError("--no-wait is for a job; give --address http://HOST:8265 too")
    with joined(experiment.address) as cluster:
        plans = planned(experiment, cluster)
        if dry_run:
            show_plan(experiment, plans, out)
            return 0
        if experiment.find_rate:
            return find_rates(experiment, plans, cluster, out)
        folder = run(experiment, plans, cluster, out)
    show_run(folder, experiment, trace, out)
    return exit_status(plans.deployments, experiment, folder)


def as_job(
    experiment: Experiment, address: str, dry_run: bool, no_wait: bool, trace: bool, out: Output
) -> int:
    """The same on a cluster, by a driver there. Returns the exit status. Raises UserError for
    --json: a job's log is no document."""
    from orchestrator.commands import jobs

    if out.as_json:
        raise UserError(
            "--json is not for a job, whose log has notes too; fetch its results, and give "
            "--json to `compare`"
        )
    flags = {"--dry-run": dry_run, "--trace": trace}
    given = tuple(flag for flag, is_given in flags.items() if is_given)
    return jobs.submit(experiment, address, given, wait=not no_wait)


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


def planned(experiment: Experiment, cluster: Cluster | None) -> PlannedExperiment:
    """The deployments and the devices they are planned for; prints what is remarkable of them and
    of the source that runs. Raises UserError where a run would be refused, before any of that."""
    from orchestrator.plan import planning
    from orchestrator.plan.deployments import PlannedExperiment
    from orchestrator.plan.remarks import remarks
    from orchestrator.run.source import remark as of_source
    from orchestrator.run.source import source
    from orchestrator.run.surroundings import check_surroundings
    from orchestrator.store.folders import folder_of
    from orchestrator.store.store import Store

    gpus = planning.find_gpus(experiment, cluster)
    device, topology = planning.choose_device(experiment, gpus)
    deployments = planning.plan_experiment(experiment, device, topology, cluster)
    check_surroundings(Store(folder_of(experiment)), experiment, deployments, cluster)
    for remark in (of_source(source()), *remarks(experiment, deployments, topology, cluster)):
        if remark:
            say(f"note: {remark}", err=True)
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
    from orchestrator.report.progress import RunProgress
    from orchestrator.run.driver import run_experiment

    with RunProgress(out.notes()) as progress:
        return run_experiment(planned.deployments, experiment, progress, cluster)


def find_rates(
    experiment: Experiment, planned: PlannedExperiment, cluster: Cluster | None, out: Output
) -> int:
    """Search the highest rate that meets the SLO, cell by cell, and print what was found. Returns
    the exit status."""
    from orchestrator.analysis.goodput import RATES
    from orchestrator.plan.planning import plan_experiment
    from orchestrator.report import sweep
    from orchestrator.report.progress import RunProgress
    from orchestrator.run.rates import Search

    device = planned.deployments[0].plan.device

    def plan(asked: Experiment) -> tuple[PlannedDeployment, ...]:
        return plan_experiment(asked, device, planned.topology, cluster)

    with RunProgress(out.notes()) as progress:
        search = Search(experiment, plan, progress, cluster)
        found = search.run(planned.deployments)
    notes = out.notes()
    if not out.as_json:
        sweep.render_rates(found, notes)
    notes.print(f"Results: {search.root}", soft_wrap=True, highlight=False)
    page = write_report(search.root, notes)
    if out.as_json:
        places = {"results": str(search.root), "report": str(page) if page else None}
        out.document({"rates": RATES.data(found)} | places)
    return SOME_FAILED if any(one.reason for one in found) else 0


def exit_status(planned: Sequence[PlannedDeployment], experiment: Experiment, folder: Path) -> int:
    """0 where every run that was needed has a result."""
    from orchestrator.run.jobs import all_completed

    return 0 if all_completed(planned, experiment, folder) else SOME_FAILED


def show_run(folder: Path, experiment: Experiment, trace: bool, out: Output) -> None:
    """Print the comparison and where the files are."""
    if experiment.workload == "train":
        trained = training.findings([folder], experiment.difference)
        if not out.as_json:
            training.draw(trained, out.notes())
        _show_places(folder, trained.as_data(), out)
        return
    from orchestrator.analysis import outputs
    from orchestrator.analysis.comparing import findings
    from orchestrator.analysis.comparing.metrics import OBJECTIVES
    from orchestrator.store.store import Store

    found = findings.of_folders(
        [folder], experiment.levels, experiment.until_ci, experiment.difference
    )
    notes, store = out.notes(), Store(folder)
    if not out.as_json:
        draw(found, OBJECTIVES[0], notes)
    for line in outputs.samples(store.read("requests")) if experiment.save_detailed else ():
        notes.print(line, soft_wrap=True, highlight=False)
    _show_places(folder, found.as_data(), out)
    if trace and store.read("spans"):
        write_traces(folder, to_stderr=out.as_json)


def _show_places(folder: Path, found: dict[str, object], out: Output) -> None:
    """Write the page and print where the files are, in JSON beside what was found."""
    notes = out.notes()
    notes.print(f"Results: {folder}", soft_wrap=True, highlight=False)
    page = write_report(folder, notes)
    if out.as_json:
        out.document(found | {"results": str(folder), "report": str(page) if page else None})
