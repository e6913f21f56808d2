"""Jobs of a Ray cluster, through its Jobs API: their driver runs on the cluster, and goes on when
who submitted it has left."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.cluster import ray_private
from orchestrator.cluster.address import VARIABLES, is_jobs_address
from orchestrator.errors import UserError

LIVE = ("PENDING", "RUNNING")
POLL_S = 1.0  # between two looks at a job that is followed
NO_AGENT = "No available agent"  # Ray's words
OURS = "orchestrator"  # in the metadata of our jobs: what they do
SUBMIT, DRY_RUN, FETCH = "submit", "dry-run", "fetch"
ANSWER_S = 10.0  # to wait for the first answer
PATIENCE_S = 60.0  # to go on following a job while the cluster does not answer


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it.

    id: experiment and attempt. does: "submit" or "fetch"; "" for a job of somebody else.
    experiment, model, layouts: what was asked. results: their folder there, as a shell reads it.
    asked: a digest of the fields and flags.
    status: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED. started_at, ended_at: UTC, ISO 8601;
    None where it has not come to that. exit_code: of the driver. message: Ray's, on its status.
    """

    id: str
    does: str
    experiment: str
    model: str
    layouts: str
    results: str
    asked: str
    status: str
    entrypoint: str
    started_at: str | None
    ended_at: str | None
    exit_code: int | None
    message: str

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.status in LIVE

    @property
    def attempt(self) -> int:
        """Its number among the jobs of its experiment; 0 for a job of another kind."""
        found = re.fullmatch(rf"{re.escape(self.experiment)}-(\d+)", self.id)
        return int(found[1]) if found else 0


def connect(address: str) -> Jobs:
    """The jobs of the cluster whose dashboard is at `address`, http://HOST:8265. Raises UserError
    where none answers there, or where it asks for another token."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if not is_jobs_address(address):
        raise UserError(f"'{address}' is no address of jobs; write http://HOST:8265")
    ray_private.tell_no_uploads()
    token = ray_private.own_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        _check_answers(f"{address}/api/version")
        with _without(VARIABLES):
            return Jobs(address, JobSubmissionClient(address, headers=headers))
    except AuthenticationError as error:
        has = "another token than the one in" if token else "a token; put it in"
        raise UserError(
            f"the Ray cluster at {address} asks for {has} ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}; give the address of its dashboard, "
            "http://HOST:8265"
        ) from error


def _check_answers(url: str) -> None:
    """Raise OSError where nothing answers at `url` soon: Ray's client would wait for ever."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with contextlib.suppress(HTTPError), urlopen(url, timeout=ANSWER_S):
        pass


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Take variables out of the environment: Ray heeds these more than the address it is given."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of the cluster at `address`."""

    address: str
    client: Any  # ray.job_submission.JobSubmissionClient

    def all(self) -> list[Job]:
        """Those of this project, the newest last."""
        with self._answered():
            found = [_job(details) for details in self.client.list_jobs()]
        return sorted(
            (job for job in found if job.does == SUBMIT), key=lambda job: job.started_at or "~"
        )

    def find(self, name: str) -> Job:
        """A job by its id, or the last attempt of an experiment. Raises UserError where there is
        none."""
        there = self.all()
        exact = [job for job in there if job.id == name]
        attempts = [job for job in there if job.experiment == name]
        if exact or attempts:
            return (exact or sorted(attempts, key=lambda job: job.attempt))[-1]
        names = ", ".join(dict.fromkeys(job.experiment for job in reversed(there))) or "none"
        raise UserError(f"no job '{name}' is known at {self.address}; experiments there: {names}")

    def attempts(self, experiment: str) -> list[Job]:
        """The jobs of an experiment, in order."""
        mine = [job for job in self.all() if job.experiment == experiment]
        return sorted(mine, key=lambda job: job.attempt)

    def get(self, job_id: str) -> Job:
        """A job as it is now."""
        with self._answered():
            return _job(self.client.get_job_info(job_id))

    def submit(
        self, job_id: str, entrypoint: str, metadata: Mapping[str, str], folder: Path | None = None
    ) -> Job:
        """Start a job. folder: what travels along, which it finds in its working directory."""
        environment = {"working_dir": str(folder)} if folder else None
        submit = partial(
            self.client.submit_job,
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env=environment,
            metadata=dict(metadata),
        )
        deadline = time.monotonic() + PATIENCE_S
        with self._answered():
            while not self._started(submit, deadline):
                time.sleep(POLL_S)
        return self.get(job_id)

    def _started(self, submit: Callable[[], object], deadline: float) -> bool:
        """Whether the cluster took a job. A head that has just started has no agent yet, which
        starts them; one whose agent found its port taken never has."""
        try:
            submit()
        except RuntimeError as error:
            if NO_AGENT not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f"the Ray cluster at {self.address} takes no jobs: the agent of its head does "
                    "not listen, as when another Ray has its port (see dashboard_agent.log there); "
                    "start Ray with --dashboard-agent-listen-port=0"
                ) from error
            return False
        return True

    def logs(self, job_id: str) -> str:
        """What its driver has printed so far."""
        with self._answered():
            return str(self.client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Write what its driver prints until it has ended. Returns it as it ended."""
        written, answered_at = 0, time.monotonic()
        while True:
            try:
                job, text = self.get(job_id), self.logs(job_id)
            except UserError as error:
                if time.monotonic() - answered_at > PATIENCE_S:
                    raise UserError(f"{error}; job {job_id} goes on there") from error
                time.sleep(POLL_S)
                continue
            answered_at = time.monotonic()
            if len(text) > written:
                write(text[written:])
                written = len(text)
            if not job.is_live:
                return job
            time.sleep(POLL_S)

    def cancel(self, job_id: str) -> None:
        """Have it end. Its actors end with it, and its logs stay."""
        with self._answered():
            self.client.stop_job(job_id)

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # which those of `requests` are
            raise UserError(f"the Ray cluster at {self.address} answers no more") from error
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["it did not say why"])[-1]
            raise UserError(f"the Ray cluster at {self.address} refused: {reason}") from error


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or details.job_id or "",
        does=metadata.get(OURS, ""),
        experiment=metadata.get("experiment", ""),
        model=metadata.get("model", ""),
        layouts=metadata.get("layouts", ""),
        results=metadata.get("results", ""),
        asked=metadata.get("asked", ""),
        status=str(details.status.value),
        entrypoint=details.entrypoint,
        started_at=_at(details.start_time),
        ended_at=_at(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _at(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1e3, UTC).isoformat(timespec="seconds")
