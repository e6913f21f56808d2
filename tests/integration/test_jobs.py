"""Experiments as jobs of a cluster that others started, and that wants a token: files and plug-ins
travel, attempts are counted, what ended is resumed, and results come back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_engine
import psutil
import pytest
from existing_cluster import BIN, Existing, assert_ran, cluster, environment, submit
from process_lists import below

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

WAIT_S = 240  # a start of a job takes a minute where the machine has other work


@dataclass(frozen=True)
class User:
    """Somebody whose machine reaches the cluster, in a folder of theirs."""

    there: Existing
    folder: Path
    variables: dict[str, str]

    def run(self, *words: object, timeout: float = WAIT_S) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "orchestrator"), *map(str, words)]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def submit(self, *words: object) -> subprocess.CompletedProcess[str]:
        lengths = () if "--dataset-path" in words else ("--input-len", 16, "--output-len", 8)
        how = ("--engine", "fake", "--device", "cpu", "--max-concurrency", 2)
        return self.run("submit", *lengths, *how, *words)

    @contextlib.contextmanager
    def following(self, job: str) -> Iterator[Iterable[str]]:
        """The lines of a job as it prints them; the block ends when the job has ended. One process
        waits: one that looks again and again takes the cores from what it waits for."""
        command = [str(BIN / "orchestrator"), "logs", "-f", job]
        with subprocess.Popen(
            command, cwd=self.folder, env=self.variables, stdout=subprocess.PIPE, text=True
        ) as follower:
            assert follower.stdout is not None
            yield follower.stdout
            follower.communicate(timeout=WAIT_S)

    def job(self, name: str) -> dict[str, str]:
        return dict(json.loads(self.run("status", name, "--json").stdout))

    def driver(self) -> psutil.Process:
        """The process of a job's driver."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for process, _, words in below(self.there.head.pid):
                if "experiment.yaml" in words and "orchestrator" in " ".join(words[:2]):
                    return process
            time.sleep(0.1)
        pytest.fail("no driver was started")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """The token is where Ray keeps it, for both; the engine `fake` is installed here alone."""
    home, here = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("here")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    plugins = fake_engine.install(tmp_path_factory.mktemp("plugins"))
    with cluster(environment(home, token=True, RAY_AUTH_MODE="token", PATH=path)) as there:
        root = Path(__file__).parents[2]
        known = os.pathsep.join((str(plugins), str(root)))
        mine = environment(here, token=True, RAY_ADDRESS=there.jobs, PYTHONPATH=known)
        yield User(there, here, mine)


def test_who_joins_the_cluster_by_its_address_needs_its_token_too(
    user: User, tmp_path: Path
) -> None:
    """It is used where Ray keeps it, whether or not RAY_AUTH_MODE says so."""
    there, results = user.there, tmp_path / "results"
    assert_ran(
        submit(there.address, results, environment(tmp_path / "here", token=True)), results, there
    )
    said = environment(tmp_path / "here", token=True, RAY_AUTH_MODE="token")
    assert submit(there.address, results, said, "--device", "auto", "--dry-run").returncode == 0
    stranger = environment(tmp_path / "stranger", token=False)
    without = submit(there.address, tmp_path / "refused", stranger)
    assert without.returncode == 2
    assert "asks for a token" in without.stderr


def test_a_job_takes_files_and_plug_ins_along_and_its_results_come_back(user: User) -> None:
    (user.folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"word {n} " * 4, "output_len": 4}) + "\n" for n in range(3))
    )
    asked = ("--dataset-path", "prompts.jsonl", "--strategy", "tp1,tp2")
    done = user.submit(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/2]" in done.stdout
    (job,) = json.loads(user.run("jobs", "--json").stdout)
    assert (job["status"], job["exit_code"], job["model"]) == ("SUCCEEDED", 0, "tiny")
    assert job["layouts"] == "tp1,tp2"
    assert job["id"] == f"{job['experiment']}-1"
    assert f"`orchestrator fetch {job['experiment']}` brings the results here" in done.stderr

    fetched = user.run("fetch", job["experiment"], "--out", "mine")
    assert fetched.returncode == 0, fetched.stderr
    compared = user.run("compare", f"mine/{job['experiment']}")
    assert compared.returncode == 0, compared.stderr
    assert " tp2 " in compared.stdout
    assert "is there already" in user.run("fetch", job["experiment"], "--out", "mine").stderr

    again = user.submit(*asked)
    assert "2 of 2 runs have a result and are skipped" in again.stdout
    assert user.job(job["experiment"])["id"] == f"{job['experiment']}-2"


def test_a_driver_that_is_killed_leaves_no_worker_and_the_same_submit_goes_on(user: User) -> None:
    asked = ("--strategy", "tp2", "--num-prompts", 60, "--num-starts", 3)
    started = user.submit(*asked, "--no-wait")
    assert started.returncode == 0, started.stderr
    (job_id,) = started.stdout.split()
    with user.following(job_id) as lines:
        assert any("[1/3]" in line for line in lines)
        user.driver().send_signal(signal.SIGKILL)
    assert user.job(job_id)["status"] == "FAILED"
    _until(lambda: not user.there.workers())
    went_on = user.submit(*asked)
    assert went_on.returncode == 0, went_on.stderr
    assert "of 3 runs have a result and are skipped" in went_on.stdout
    assert f"Job {job_id[:-1]}2 was submitted" in went_on.stderr


def test_a_live_job_is_attached_to_and_can_be_cancelled(user: User) -> None:
    asked = ("--strategy", "tp1", "--num-prompts", 4000, "--seed", 3)
    (job_id,) = user.submit(*asked, "--no-wait").stdout.split()
    second = user.submit(*asked, "--no-wait")
    assert f"Job {job_id} runs already" in second.stderr
    assert second.stdout.split() == [job_id]
    user.driver()
    assert user.run("cancel", job_id).returncode == 0
    followed = user.run("logs", "-f", job_id)
    assert followed.returncode != 0
    assert user.job(job_id)["status"] == "STOPPED"
    assert "Running entrypoint" in user.run("logs", job_id).stdout
    assert "has ended already" in user.run("cancel", job_id).stderr


def test_what_is_refused_is_refused_before_or_by_the_job(user: User) -> None:
    def refused(*words: object) -> str:
        done = user.submit(*words)
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "asks for another token" in _as_stranger(user)
    assert "answers at http://127.0.0.1:1" in refused("--address", "http://127.0.0.1:1")
    assert "same absolute path on every node" in refused("--model", "my-checkpoint")
    assert "--json is not for a job" in refused("--json")
    assert "there is none here" in refused("--strategy", "tp2", "--device", "cuda")
    assert "no job 'nothing' is known" in user.run("status", "nothing").stderr
    here = user.run("submit", "--no-wait", "--address", "auto")
    assert "--no-wait is for a job" in here.stderr


def _as_stranger(user: User) -> str:
    variables = {**user.variables, "RAY_AUTH_TOKEN": "f" * 64}
    return User(user.there, user.folder, variables).run("jobs").stderr


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if is_so():
            return
        time.sleep(0.5)
    pytest.fail("it did not come to that")
