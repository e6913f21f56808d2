"""Ray clusters of several nodes: in one machine, or in namespaces that a limited link joins."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import namespaces
import pytest
from existing_cluster import environment

BIN = Path(sys.executable).parent
Again = Callable[[int, str], Any]  # CPUs and address of a node -> the node
STORE_BYTES = 100_000_000
START_S = 200


@contextlib.contextmanager
def in_one_machine(cpus: Sequence[int]) -> Iterator[tuple[str, dict[str, Any], Again]]:
    """A node of `ray.cluster_utils.Cluster` for each number of CPUs: the address of the cluster,
    each node by its own, and what brings one back that has died, with so many CPUs. The first one
    has the address of this machine, by which drivers find it, the others 127.0.0.2 and so on."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, and not that of other clusters
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "RAY_AUTH_MODE")}
    os.environ.update(RAY_TMPDIR=folder, RAY_AUTH_MODE="disabled")
    there = Cluster()
    try:

        def add(count: int, address: str | None = None) -> Any:
            where = {"node_ip_address": address} if address else {}
            quiet = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
            return there.add_node(num_cpus=count, **where, **quiet)

        nodes = [
            add(count, f"127.0.0.{number}" if number > 1 else None)
            for number, count in enumerate(cpus, start=1)
        ]
        there.wait_for_nodes(START_S)
        yield there.address, {node.node_ip_address: node for node in nodes}, add
    finally:
        there.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Joined:
    """Machines on which `ray start` was called; the first one is the head."""

    machines: list[namespaces.Machine]
    variables: dict[str, str]

    def run(
        self, number: int, *words: object, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on one of them."""
        return subprocess.run(
            self.machines[number].command(*words),
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def begin(self, number: int, *words: object) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return subprocess.Popen(
            self.machines[number].command(*words),
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextlib.contextmanager
def in_namespaces(home: Path, cpus: Sequence[int]) -> Iterator[Joined]:
    """A machine for each number of CPUs, with `ray start` as docs/cluster.md has it. Skips the test
    where there can be none."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    variables = environment(home, token=False, RAY_AUTH_MODE="disabled")
    variables["PATH"] = f"{BIN}{os.pathsep}{variables['PATH']}"
    with namespaces.machines(len(cpus)) as machines:
        joined = Joined(machines, variables)
        for number, count in enumerate(cpus):
            where = ["--head"] if number == 0 else [f"--address={machines[0].address}:6379"]
            options = [f"--num-cpus={count}", f"--object-store-memory={STORE_BYTES}"]
            done = joined.run(number, "ray", "start", *where, *options, timeout_s=START_S)
            assert done.returncode == 0, done.stdout + done.stderr
        yield joined
