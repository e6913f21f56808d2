"""Experiments as jobs of a Ray cluster: submit, list, follow, cancel, and bring results back."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import os
import re
import secrets
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster.address import VARIABLES, is_jobs_address
from orchestrator.cluster.jobs import DRY_RUN, FETCH, OURS, SUBMIT, Job, Jobs, connect
from orchestrator.commands import SOME_FAILED
from orchestrator.errors import UserError
from orchestrator.experiment.places import uri_of
from orchestrator.report.output import Output, say
from orchestrator.store.names import digest

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

BEGIN, END = "-----BEGIN RESULTS-----", "-----END RESULTS-----"
NO_COMMAND = 127  # exit status of a shell that does not find the command
ADDRESS = "http://HOST:8265"


def submit(experiment: Experiment, address: str, flags: tuple[str, ...], wait: bool) -> int:
    """Run an experiment as a job, or attach to its job that runs. Returns the exit status: that of
    the driver, where it was waited for.

    flags: of `submit`, which the job gets too.
    """
    from orchestrator.plan.parcel import CONFIG, parcel

    jobs = connect(address)
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as name:
        folder = Path(name)
        experiment_name = parcel(experiment, folder)
        results = _root(experiment.result_dir, experiment_name)
        command = ["orchestrator", "submit", "--config", CONFIG, *flags]
        entrypoint = f"{shlex.join(command)} --result-dir {results}"
        metadata = {
            OURS: DRY_RUN if "--dry-run" in flags else SUBMIT,
            "experiment": experiment_name,
            "model": experiment.model,
            "layouts": ",".join(experiment.strategy),
            "results": results,
            "asked": digest([(folder / CONFIG).read_text(encoding="utf-8"), entrypoint]),
        }
        attempts = jobs.attempts(experiment_name)
        job = _live(attempts, metadata)
        if job is None:
            job = jobs.submit(_id(attempts, metadata), entrypoint, metadata, folder)
            say(f"Job {job.id} was submitted to {address}.", err=True)
    if not wait:
        say(job.id)
        return 0
    return _followed(jobs, job)


def _live(attempts: Sequence[Job], metadata: Mapping[str, str]) -> Job | None:
    """The job that does what is asked already. Raises UserError where another one writes to the
    same results."""
    if metadata[OURS] != SUBMIT:
        return None
    for job in attempts:
        if job.is_live and job.asked != metadata["asked"]:
            raise UserError(
                f"job {job.id} writes to the same results and was asked for something else "
                f"(layouts {job.layouts}); wait for it with `orchestrator logs -f {job.id}`, or "
                "cancel it"
            )
        if job.is_live:
            say(f"Job {job.id} runs already; attached to it.", err=True)
            return job
    return None


def _id(attempts: Sequence[Job], metadata: Mapping[str, str]) -> str:
    """Of a new job: the next attempt, or, of one that measures nothing, any that is free."""
    if metadata[OURS] != SUBMIT:
        return f"{metadata['experiment']}-{metadata[OURS]}-{secrets.token_hex(2)}"
    return f"{metadata['experiment']}-{1 + max((one.attempt for one in attempts), default=0)}"


def _root(result_dir: Path | None, experiment: str) -> str:
    """The folder of an experiment's results on the cluster, as a shell reads it: a relative one is
    in the home of the cluster's user. It has the name that the experiment has here: there, a
    checkpoint may count otherwise."""
    path = (result_dir or Path("results")) / experiment
    if uri := uri_of(path):
        return shlex.quote(uri)
    return shlex.quote(str(path)) if path.is_absolute() else f'"$HOME"/{shlex.quote(str(path))}'


def _followed(jobs: Jobs, job: Job) -> int:
    try:
        ended = jobs.follow(job.id, _write)
    except KeyboardInterrupt:
        say(
            f"Job {job.id} goes on; `orchestrator logs -f {job.id}` follows it, `orchestrator "
            f"cancel {job.id}` ends it.",
            err=True,
        )
        raise
    return _outcome(jobs, ended)


def _outcome(jobs: Jobs, job: Job) -> int:
    """Say how a job ended, and return the exit status of its driver."""
    if job.exit_code == NO_COMMAND:
        raise UserError(
            f"job {job.id}: the head of the cluster at {jobs.address} finds no `orchestrator`; "
            "install this project there, and start Ray with its environment on PATH"
        )
    if job.status != "SUCCEEDED" and job.exit_code != SOME_FAILED:
        say(f"Job {job.id} {job.status.lower()}: {_reason(job)}", err=True)
    elif job.does == SUBMIT:
        say(f"`orchestrator fetch {job.experiment}` brings the results here.", err=True)
    if job.exit_code is not None:
        return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
    return 0 if job.status == "SUCCEEDED" else 1


def _reason(job: Job) -> str:
    return job.message.strip().splitlines()[0] if job.message.strip() else "no reason was given"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def listed(address: str, out: Output) -> None:
    """Print the jobs of this project."""
    from orchestrator.report import checks

    found = connect(address).all()
    titles = ("started", "job", "status", "model", "layouts")
    rows = [(one.started_at or "-", one.id, _state(one), one.model, one.layouts) for one in found]
    out.show(
        lambda: [dataclasses.asdict(job) for job in found],
        lambda console: checks.render_rows(titles, rows, console, "No job of ours is known there."),
    )


def _state(job: Job) -> str:
    return job.status.lower() + (f" ({job.exit_code})" if job.exit_code else "")


def status(address: str, name: str, out: Output) -> None:
    """Print what is known of a job."""
    found = connect(address).find(name)
    out.show(lambda: dataclasses.asdict(found), lambda console: _draw_one(found))


def _draw_one(job: Job) -> None:
    fields = dataclasses.asdict(job)
    for field in ("id", "status", "exit_code", "model", "layouts", "started_at", "ended_at"):
        if fields[field] not in (None, ""):
            say(f"{field.replace('_', ' '):11} {fields[field]}")
    say(f"{'entrypoint':11} {job.entrypoint}")
    if job.message:
        say(f"{'message':11} {_reason(job)}")


def logs(address: str, name: str, follow: bool, out: Output) -> int:
    """Print what a job has printed. follow: until it ends; returns its exit status then."""
    jobs = connect(address)
    job = jobs.find(name)
    if follow:
        return _followed(jobs, job)
    text = jobs.logs(job.id)
    out.show(lambda: {"id": job.id, "log": text}, lambda console: _write(text))
    return 0


def cancel(address: str, name: str, out: Output) -> None:
    """End a job. Raises UserError where it has ended."""
    jobs = connect(address)
    job = jobs.find(name)
    if not job.is_live:
        raise UserError(f"job {job.id} has ended already: {job.status}")
    jobs.cancel(job.id)
    told = f"Job {job.id} is told to end; `orchestrator status {job.id}` shows whether it has."
    out.show(lambda: dataclasses.asdict(jobs.get(job.id)), lambda console: say(told))


def fetch(address: str, name: str, into: Path, out: Output) -> None:
    """Bring the results of a job's experiment to `into`/EXPERIMENT, packed. Raises UserError where
    there are none, or where that folder is there already."""
    jobs = connect(address)
    job = jobs.find(name)
    target = into / job.experiment
    if target.exists():
        raise UserError(f"{target} is there already; give another --out, or move it away")
    sender = f"{job.experiment}-fetch-{secrets.token_hex(2)}"
    jobs.submit(sender, _sending(job), {OURS: FETCH})
    ended = jobs.follow(sender, lambda _: None)
    text = jobs.logs(sender)
    if ended.exit_code:
        raise UserError(f"{job.experiment} has no results yet that can be packed: {_last(text)}")
    if ended.status != "SUCCEEDED":
        raise UserError(f"the cluster could not send the results: {_reason(ended)}")
    _unpack(text, into, job.experiment)
    out.show(lambda: {"results": str(target)}, lambda console: say(target))


def _sending(job: Job) -> str:
    """A shell command that prints packed results as text: a job has no other way out than its
    log."""
    name = shlex.quote(job.experiment)
    return (
        f"D=$(mktemp -d) && cd $D && orchestrator pack {job.results} --out {name} && echo {BEGIN} "
        f"&& tar -cz {name} | base64 && echo {END}; S=$?; rm -rf $D; exit $S"
    )


def _unpack(text: str, into: Path, experiment: str) -> None:
    """Write the folder `experiment` of what was sent into `into`, whole or not at all."""
    found = re.search(rf"^{BEGIN}$(.*)^{END}$", text, re.MULTILINE | re.DOTALL)
    try:
        data = base64.b64decode(found[1] if found else "", validate=False)
        into.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as halfway,
            tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive,
        ):
            archive.extractall(halfway, filter="data")
            (Path(halfway) / experiment).rename(into / experiment)
    except (binascii.Error, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"what the cluster sent is cut short ({error}); try again") from error


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "its log is empty"


def address_of(asked: str | None) -> str:
    """The address of a Jobs API: the one asked for, else RAY_API_SERVER_ADDRESS or RAY_ADDRESS.
    Raises UserError where there is none."""
    known = (asked, *map(os.environ.get, VARIABLES))
    found = next((one for one in known if one and is_jobs_address(one)), None)
    if found is None:
        raise UserError(f"which cluster? Give --address {ADDRESS}, or set RAY_ADDRESS to it")
    return found
