"""`orchestrator submit --address` against a Ray cluster that others started, with and without token
authentication."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fake_nsys
import pytest
from existing_cluster import BIN, Existing, cluster, environment

pytestmark = pytest.mark.ray

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
    assert re.search(r"run 1: [\d.]+ tok/s", done.stderr)
    assert re.search(r"dashboard: http://[\w.]+:\d+", done.stderr)
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
