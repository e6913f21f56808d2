"""The commands on jobs of a cluster. What is done is in `orchestrator.commands.jobs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from orchestrator.options import json_option
from orchestrator.options.places import PATH
from orchestrator.report.output import Output

address_option = click.option(
    "--address",
    metavar="URL",
    help="The dashboard of the cluster, http://HOST:8265. [RAY_API_SERVER_ADDRESS, RAY_ADDRESS]",
)


def of_a_job(command: Callable[..., Any]) -> Callable[..., Any]:
    """NAME and --address."""
    argument = click.argument("name", metavar="JOB|EXPERIMENT")
    return argument(address_option(command))


@click.command()
@address_option
@json_option
def jobs(address: str | None, as_json: bool) -> None:
    """List the experiments that were submitted to a cluster as jobs."""
    from orchestrator.commands import jobs as work

    work.listed(work.address_of(address), Output(as_json))


@click.command()
@of_a_job
@json_option
def status(name: str, address: str | None, as_json: bool) -> None:
    """Show the state of a job, or of the last one of an experiment."""
    from orchestrator.commands import jobs as work

    work.status(work.address_of(address), name, Output(as_json))


@click.command()
@of_a_job
@click.option(
    "-f", "--follow", is_flag=True, help="Until the job ends; the exit status is the job's."
)
@json_option
def logs(name: str, address: str | None, follow: bool, as_json: bool) -> None:
    """Print what a job has printed."""
    from orchestrator.commands import jobs as work

    if follow and as_json:
        raise click.UsageError("--json is one document, which -f never ends; leave one of them out")
    raise SystemExit(work.logs(work.address_of(address), name, follow, Output(as_json)))


@click.command()
@of_a_job
@json_option
def cancel(name: str, address: str | None, as_json: bool) -> None:
    """End a job. What it has measured stays on the cluster, and so does its log."""
    from orchestrator.commands import jobs as work

    work.cancel(work.address_of(address), name, Output(as_json))


@click.command()
@click.argument("name", metavar="JOB|EXPERIMENT|URI")
@address_option
@click.option("--out", type=PATH, default=Path("results"), metavar="DIR", help="[results]")
@json_option
def fetch(name: str, address: str | None, out: Path, as_json: bool) -> None:
    """Bring the results of a job here, packed, or those at a URI, as they are. Every command reads
    both."""
    from orchestrator.commands import jobs as work
    from orchestrator.commands import places

    if places.is_uri(name):
        return places.fetch(name, out, Output(as_json))
    work.fetch(work.address_of(address), name, out, Output(as_json))


COMMANDS = (jobs, status, logs, cancel, fetch)
