"""`orchestrator submit --address` against a Ray cluster that others started, and that asks for no
token. tests/integration/test_jobs.py has one that does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_nsys
import pytest
from existing_cluster import Existing, assert_ran, cluster, environment, submit

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
COUNTED = (sys.executable, "-c", COUNTING)


@pytest.fixture(scope="module")
def open_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Existing]:
    """One that asks for no token, and that has nsys."""
    folder = tmp_path_factory.mktemp("open")
    path = f"{fake_nsys.install(folder / 'bin')}{os.pathsep}{os.environ['PATH']}"
    variables = environment(folder / "cluster", token=False, RAY_AUTH_MODE="disabled", PATH=path)
    with cluster(variables) as there:
        yield there


@dataclass(frozen=True)
class Joined:
    """A command that has measured there: what it said, and where it connected to."""

    done: subprocess.CompletedProcess[str]
    results: Path
    joins: list[str]


@pytest.fixture(scope="module")
def joined(open_cluster: Existing, tmp_path_factory: pytest.TempPathFactory) -> Joined:
    """With a token, which is for another cluster, and with nsys."""
    folder = tmp_path_factory.mktemp("joined")
    joins, results = folder / "joins", folder / "results"
    here = environment(folder / "here", token=True, JOINS=str(joins))
    done = submit(open_cluster.address, results, here, "--nsys", program=COUNTED)
    return Joined(done, results, joins.read_text().split())


def test_a_token_does_no_harm_where_a_cluster_asks_for_none(open_cluster, joined):
    assert_ran(joined.done, joined.results, open_cluster)


def test_a_command_connects_once(open_cluster, joined, tmp_path):
    """The device, the places of nsys and the room are all known from one connection."""
    assert joined.joins == [open_cluster.address]
    joins, results = tmp_path / "joins", tmp_path / "results"
    here = environment(tmp_path / "here", token=False, JOINS=str(joins))
    planned = submit(open_cluster.address, results, here, "--nsys", "--dry-run", program=COUNTED)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert joins.read_text().split() == [open_cluster.address]
    assert not results.exists()


def test_every_rank_there_leaves_a_report_of_nsys_on_its_node(joined):
    (reports,) = re.findall(r"on the node of each rank, in (/tmp/\S+?\.nsys);", joined.done.stderr)
    written = sorted(file.name for file in Path(reports).rglob("*.nsys-rep"))
    shutil.rmtree(reports)
    assert written == ["rank0.nsys-rep", "rank1.nsys-rep"]
