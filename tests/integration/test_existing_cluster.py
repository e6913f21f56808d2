"""`orchestrator submit --address` against a Ray cluster that others started, with and without token
authentication."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def open_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Existing]:
    """One that asks for no token, and that has nsys."""
    folder = tmp_path_factory.mktemp("open")
    path = f"{fake_nsys.install(folder / 'bin')}{os.pathsep}{os.environ['PATH']}"
    variables = environment(folder / "cluster", token=False, RAY_AUTH_MODE="disabled", PATH=path)
    with cluster(variables) as there:
        yield there


def test_a_cluster_that_asks_for_no_token(open_cluster, tmp_path):
    """A token that is there all the same, for another cluster, does no harm."""
    result_dir = tmp_path / "results"
    here = environment(tmp_path / "here", token=True)
    assert_ran(submit(open_cluster.address, result_dir, here), result_dir, open_cluster)


def test_a_command_connects_once(open_cluster, tmp_path):
    """The device, the places of nsys and the room are all known from one connection."""
    joins, results = tmp_path / "joins", tmp_path / "results"
    here = environment(tmp_path / "here", token=False, JOINS=str(joins))
    address, counting = open_cluster.address, (sys.executable, "-c", COUNTING)
    planned = submit(address, results, here, "--nsys", "--dry-run", program=counting)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert joins.read_text().split() == [address]
    assert not results.exists()
    joins.unlink()
    done = submit(address, results, here, "--nsys", program=counting)
    assert joins.read_text().split() == [address]
    assert_ran(done, results, open_cluster)
    (reports,) = re.findall(r"on the node of each rank, in (/tmp/\S+?\.nsys);", done.stderr)
    written = sorted(file.name for file in Path(reports).rglob("*.nsys-rep"))
    shutil.rmtree(reports)
    assert written == ["rank0.nsys-rep", "rank1.nsys-rep"]
