"""`orchestrator submit --address` against a Ray cluster that others started, with and without token
authentication."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_nsys
import psutil
import pytest

from orchestrator.cluster.processes import end

pytestmark = pytest.mark.ray

TOKEN = "0123456789abcdef" * 4
# `orchestrator` that notes each connection to Ray in the file $JOINS.
COUNTING = """
import os, ray
init = ray.init
def noted(*args, **options):
    with open(os.environ["JOINS"], "a") as file:
        print(options.get("address"), file=file)
    return init(*args, **options)
ray.init = noted
from orchestrator.cli import main
main()
"""
START_S = 60
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Existing:
    """Its address, and the process that all of its others descend from."""

    address: str
    head: psutil.Process

    def workers(self) -> list[str]:
        return [
            process.name()
            for process in self.head.children(recursive=True)
            if "Worker" in process.name()
        ]


@contextlib.contextmanager
def cluster(environment: dict[str, str]) -> Iterator[Existing]:
    """A Ray of its own ports and folder. It is ended by killing its processes; `ray stop` would end
    everybody's."""
    folder = Path(
        tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    )  # short: paths of sockets have at most 107 characters
    ports = free_ports(2)
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--port=0",
        f"--ray-client-server-port={ports[0]}",
        f"--dashboard-port={ports[1]}",
        f"--temp-dir={folder}",
        "--num-cpus=2",
        "--object-store-memory=100000000",
    ]
    with (folder / "out").open("w") as out:
        head = psutil.Popen(
            list(map(str, command)), env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield Existing(address_when_up(folder, head), head)
    finally:
        end([*head.children(recursive=True), head], patience_s=0)
        shutil.rmtree(folder)


def address_when_up(folder: Path, head: psutil.Popen) -> str:
    """What Ray notes down when all of its processes have started."""
    note = folder / "ray_current_cluster"
    deadline = time.monotonic() + START_S
    while not (note.exists() and note.read_text()):
        if head.poll() is not None or time.monotonic() > deadline:
            pytest.fail("Ray did not start:\n" + (folder / "out").read_text())
        time.sleep(0.1)
    return note.read_text().strip()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment(home: Path, token: bool, **variables: str) -> dict[str, str]:
    """That of a user who has, or has not, a token where Ray keeps it."""
    home.mkdir(exist_ok=True)
    if token:
        (home / ".ray").mkdir(exist_ok=True)
        (home / ".ray" / "auth_token").write_text(TOKEN)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **variables}


def submit(
    address: str,
    result_dir: Path,
    env: dict[str, str],
    *flags: str,
    program: tuple[str | Path, ...] = (BIN / "orchestrator",),
) -> subprocess.CompletedProcess[str]:
    command = [
        *program,
        "submit",
        "--address",
        address,
        "--strategy",
        "tp2",
        "--input-len",
        "16",
        "--output-len",
        "4",
        "--max-concurrency",
        "2",
        "--device",
        "cpu",
        "--result-dir",
        result_dir,
        *flags,
    ]
    return subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, timeout=120
    )


def assert_ran(done: subprocess.CompletedProcess[str], result_dir: Path, there: Existing) -> None:
    """It printed a result, kept it, and left the cluster running without a worker of ours."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"run 1: [\d.]+ tok/s", done.stdout)
    assert re.search(r"dashboard: http://[\w.]+:\d+", done.stdout)
    assert len(list(result_dir.glob("*/summary/*.arrow"))) == 1
    assert len(list(result_dir.glob("*/comparison.arrow"))) == 1
    assert there.head.is_running()
    deadline = time.monotonic() + 10
    while there.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert there.workers() == []


def test_a_cluster_that_asks_for_no_token(tmp_path):
    """A token that is there all the same, for another cluster, does no harm."""
    with cluster(environment(tmp_path / "cluster", token=False, RAY_AUTH_MODE="disabled")) as there:
        result_dir = tmp_path / "results"
        assert_ran(
            submit(there.address, result_dir, environment(tmp_path / "here", token=True)),
            result_dir,
            there,
        )


def test_a_cluster_that_asks_for_a_token(tmp_path):
    """It is used where Ray keeps it, whether or not RAY_AUTH_MODE says so."""
    with cluster(environment(tmp_path / "cluster", token=True, RAY_AUTH_MODE="token")) as there:
        result_dir = tmp_path / "results"
        assert_ran(
            submit(there.address, result_dir, environment(tmp_path / "here", token=True)),
            result_dir,
            there,
        )
        said = environment(tmp_path / "here", token=True, RAY_AUTH_MODE="token")
        assert (
            submit(there.address, result_dir, said, "--device", "auto", "--dry-run").returncode == 0
        )
        without = submit(
            there.address, tmp_path / "refused", environment(tmp_path / "stranger", token=False)
        )
        assert without.returncode == 2
        assert "asks for a token" in without.stderr


def test_a_command_connects_once(tmp_path):
    """The device, the places of nsys and the room are all known from one connection."""
    path = f"{fake_nsys.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    there = environment(tmp_path / "cluster", token=False, RAY_AUTH_MODE="disabled", PATH=path)
    joins, results = tmp_path / "joins", tmp_path / "results"
    here = environment(tmp_path / "here", token=False, JOINS=str(joins))
    counting = (sys.executable, "-c", COUNTING)
    with cluster(there) as running:
        planned = submit(running.address, results, here, "--nsys", "--dry-run", program=counting)
        assert planned.returncode == 0, planned.stdout + planned.stderr
        assert joins.read_text().split() == [running.address]
        assert not results.exists()
        joins.unlink()
        done = submit(running.address, results, here, "--nsys", program=counting)
        assert joins.read_text().split() == [running.address]
        assert_ran(done, results, running)
    (reports,) = re.findall(r"on the node of each rank, in (/tmp/\S+?\.nsys);", done.stderr)
    written = sorted(file.name for file in Path(reports).rglob("*.nsys-rep"))
    shutil.rmtree(reports)
    assert written == ["rank0.nsys-rep", "rank1.nsys-rep"]
