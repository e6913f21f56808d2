"""The nodes of a cluster: what each of them has."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster import environment, hardware
from orchestrator.cluster.failures import RunFailed, first_line
from orchestrator.cluster.hardware import Gpu
from orchestrator.cluster.health import JOINED_S, Server
from orchestrator.cluster.waiting import patiently
from orchestrator.errors import UserError
from strategies.shapes import Device, Topology
from workers.versions import PROJECT, versions

RESOURCES = {"cuda": "GPU", "cpu": "CPU"}  # what Ray calls a device
LOST_S = 40.0  # for Ray to give a node up: it asks five times, one every 3 s, and waits for each
LOOK_S = 0.5
START_S = 120.0  # for the processes of a cluster: importing torch from a cold disk


@dataclass(frozen=True, slots=True)
class Node:
    """One node. counts: "cuda" and "cpu" -> devices that can be reserved there. gpus: what NVML
    reports of them. version: of this project on the node, None where it is not installed. python:
    the interpreter of its workers. profilers: `nsys` and `ncu`, where they are on its PATH.
    environment: the variables by which its GPUs compute and communicate."""

    address: str
    counts: Mapping[str, int]
    gpus: tuple[Gpu, ...] = ()
    version: str | None = None
    python: str = field(default_factory=lambda: sys.executable)
    profilers: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def devices(self, device: str) -> list[Device]:
        """The devices of one kind on this node. Memory is 0 on CPU, and where NVML does not report
        it."""
        known = {gpu.index: gpu for gpu in self.gpus} if device == "cuda" else {}
        return [self._device(index, device, known.get(index)) for index in range(self.has(device))]

    def has(self, device: str) -> int:
        """How many devices of one kind there are."""
        return self.counts.get(device, 0)

    def _device(self, index: int, kind: str, gpu: Gpu | None) -> Device:
        if gpu is None:
            return Device(self.address, index, 0, kind)
        return gpu.device(self.address)


def topology_of(nodes: Sequence[Node], device: str) -> Topology:
    """The devices of one kind, ordered by node and index."""
    by_address = sorted(nodes, key=lambda node: node.address)
    return Topology(tuple(one for node in by_address for one in node.devices(device)))


def without(tool: str, nodes: Sequence[Node], device: str) -> tuple[str, ...]:
    """Addresses of the nodes that may get a rank and do not have the profiler `tool`."""
    there = (node for node in nodes if node.has(device))
    return tuple(node.address for node in there if tool not in node.profilers)


def refuse_other_versions(nodes: Sequence[Node], mine: str) -> None:
    """Raise UserError where a node has another version of this project: its results cannot be
    compared, and it may not understand the plans."""
    for node in nodes:
        if node.version != mine:
            raise UserError(
                f"this machine has {PROJECT} {mine}, node {node.address} of the cluster has "
                f"{node.version or 'none'}; install the same version on both"
            )


def this_node(device: str, ranks: int) -> Node:
    """This machine as the one node of a local cluster: its GPUs, or `ranks` CPU workers."""
    gpus = tuple(hardware.gpus())
    counts = {"cuda": len(gpus), "cpu": ranks if device == "cpu" else os.cpu_count() or 1}
    return Node(
        "local",
        counts,
        gpus,
        versions().get(PROJECT),
        profilers=hardware.profilers(),
        environment=environment.here(),
    )


def ask_nodes() -> tuple[Node, ...]:
    """What every living node of the connected cluster has, asked by one small task on each. Raises
    UserError where one does not answer, or has another version of this project."""
    mine = versions()[PROJECT]
    nodes = alive()
    task = ray.remote(num_cpus=0, max_retries=0)(_probe_for(mine))
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    refs = [task.options(scheduling_strategy=place).remote() for place in places]
    try:
        answers = ray.get(refs, timeout=START_S)
    except RayError as error:
        raise UserError(f"a node of the cluster does not answer: {first_line(error)}") from error
    found = tuple(_node(node, answer) for node, answer in zip(nodes, answers, strict=True))
    refuse_other_versions(found, mine)
    return found


def alive() -> list[Mapping[str, Any]]:
    """What Ray says of each node that it counts on."""
    return [node for node in ray.nodes() if node["Alive"]]


def living(device: str) -> dict[str, int]:
    """Address -> devices of one kind, of each node that has any."""
    counts = {
        one["NodeManagerAddress"]: one["Resources"].get(RESOURCES[device], 0) for one in alive()
    }
    return {address: int(count) for address, count in counts.items() if count}


def of_lost_nodes(
    failure: RunFailed, nodes: Mapping[int, str], check: Callable[[], None]
) -> RunFailed:
    """A failure, as that of nodes which the cluster has lost with ranks of the group, if it has:
    that a rank is gone, or has lost a peer, is known earlier than why. nodes: rank -> the address
    of its node. check: raises what is to be raised where Ray itself is gone."""
    mine, there = set(nodes.values()), patiently(alive, check)
    silent = [one for one in there if one["NodeManagerAddress"] in mine and _is_silent(one)]
    deadline = time.monotonic() + (LOST_S if silent else 0.0)
    while mine <= _addresses(there) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        there = patiently(alive, check)
    lost = sorted(mine - _addresses(there))
    if not lost:
        return failure
    ranks = ", ".join(str(rank) for rank, node in nodes.items() if node in lost)
    said = f"lost node {', '.join(lost)} with rank {ranks}"
    return RunFailed(f"{said}: {failure.reason}", failure.detail, lost)


def _addresses(there: Sequence[Mapping[str, Any]]) -> set[str]:
    return {str(one["NodeManagerAddress"]) for one in there}


def _is_silent(node: Mapping[str, Any]) -> bool:
    """Whether nothing listens where its raylet does, which Ray notices some time later."""
    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    return Server("raylet", *where, JOINED_S).is_gone()


def _node(node: Mapping[str, Any], answer: Mapping[str, Any]) -> Node:
    """One node from what Ray and its own task say of it."""
    counts = {device: int(node["Resources"].get(name, 0)) for device, name in RESOURCES.items()}
    gpus = tuple(Gpu(**fields) for fields in answer["gpus"])
    return Node(node["NodeManagerAddress"], counts, **{**answer, "gpus": gpus})


def _probe_for(mine: str) -> Any:
    """The task that each node runs. It is a closure and returns plain data, so that it can also run
    on nodes without this project. It reports GPUs and variables only where the version is
    `mine`."""

    def probe() -> dict[str, object]:
        import importlib
        import shutil
        import sys
        from importlib.metadata import PackageNotFoundError, version

        try:
            found: str | None = version("shard-orchestrator")
        except PackageNotFoundError:
            found = None
        answer: dict[str, object] = {"version": found, "gpus": [], "python": sys.executable}
        answer["profilers"] = tuple(tool for tool in ("nsys", "ncu") if shutil.which(tool))
        if found == mine:
            hardware = importlib.import_module("orchestrator.cluster.hardware")
            variables = importlib.import_module("orchestrator.cluster.environment")
            answer["gpus"] = [hardware.as_data(gpu) for gpu in hardware.gpus()]
            answer["environment"] = variables.here()
        return answer

    return probe
