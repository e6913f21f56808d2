"""Ray: start a cluster or join one, and know its devices.

Ray carries control and results only. `ray stop` is never called: it would hit clusters that are not
ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Read when ray is imported. A dead worker is told of in the run's own line.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.failures import first_line
from orchestrator.cluster.hardware import local_topology
from orchestrator.cluster.processes import children, end, uninterrupted
from orchestrator.errors import UserError
from strategies.shapes import Device, Topology
from workers.versions import PROJECT, versions

NAMESPACE = "orchestrator"
RESOURCES = {"cuda": "GPU", "cpu": "CPU"}
# each for the connection and for the first word: an address that is slower than that is not a
# cluster
PROBE_S = 2.5
START_S = 120.0  # for the processes of the actors: importing torch from a cold disk
OBJECT_STORE_BYTES = 256 << 20  # only records pass through it
# between two reports of a process to the metrics endpoint; Ray's 10 s would miss a short run
METRICS_MS = 2000

NO_MASK = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster this process is connected to. embedded: started here, and ended with the
    context of `connect`.

    pythons: address of a node -> the interpreter of its workers; empty where that is this one.
    without_nsys: addresses of nodes that have devices and no Nsight Systems. Both are known of
    clusters that were joined.
    """

    device: str
    devices: Topology
    embedded: bool
    address: str
    dashboard: str | None
    pythons: Mapping[str, str] = field(default_factory=dict)
    without_nsys: tuple[str, ...] = ()

    def topology(self) -> Topology:
        """The devices of `device`, ordered by node and index. Memory is 0 on CPU, and where NVML
        does not tell."""
        return self.devices


# -- connecting


@contextlib.contextmanager
def connect(
    address: str | None, device: str, ranks_needed: int, dashboard: bool = True
) -> Iterator[Cluster]:
    """A cluster with room for `ranks_needed` ranks on `device` ("cuda" or "cpu"); the one at
    `address`, or a local one.

    address: "host:port", "auto" or "ray://host:port"; None means RAY_ADDRESS where that is set,
    else a local cluster that ends with this context. Raises UserError where there is no such
    cluster, it is too small, or its nodes have another version of this project.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        _check_room(local_topology(device, ranks_needed), device, ranks_needed, "this machine")
    else:
        check_address(address)
    assert not ray.is_initialized(), (
        "this process is connected to a Ray cluster already, which is not ours to end"
    )
    before = children()
    try:
        yield (
            _start(device, ranks_needed, dashboard)
            if address is None
            else _join(address, device, ranks_needed)
        )
    finally:
        with uninterrupted():
            started = [child for child in children() if child not in before]
            ray.shutdown()
            end(started)


def _start(device: str, ranks: int, dashboard: bool) -> Cluster:
    """A local Ray of our own. CPU ranks may outnumber the cores."""
    os.environ.setdefault(NO_MASK, "1")
    context = ray.init(
        address="local",
        namespace=NAMESPACE,
        num_cpus=max(os.cpu_count() or 1, ranks),
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _system_config={"metrics_report_interval_ms": METRICS_MS},
    )
    url = context.dashboard_url
    return Cluster(
        device, local_topology(device, ranks), True, "local", f"http://{url}" if url else None
    )


def _join(address: str, device: str, ranks: int) -> Cluster:
    """Connect to a cluster that is there. Its nodes are asked for their versions, GPUs and tools by
    one tiny task each."""
    try:
        context = ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the Ray cluster at {address} did not let us in: {first_line(error)}"
        ) from error
    nodes = _ask_nodes()
    _refuse_other_versions(nodes, versions()[PROJECT])
    topology = _topology_of(nodes, device)
    _check_room(topology, device, ranks, f"the cluster at {address}")
    url = getattr(context, "dashboard_url", None)
    pythons = {node["node"]: node["python"] for node in nodes}
    return Cluster(
        device,
        topology,
        False,
        address,
        f"http://{url}" if url else None,
        pythons,
        _without_nsys(nodes, device),
    )


def _check_room(topology: Topology, device: str, ranks: int, where: str) -> None:
    there = len(topology.devices)
    if there < ranks:
        what = RESOURCES[device] + "s"
        raise UserError(
            f"the layout needs {ranks} {what}, {where} has {there}; use a smaller layout or "
            "another --address"
        )


def check_address(address: str) -> None:
    """Raises UserError where no Ray cluster answers at `address`."""
    _probe(*_host_and_port(address), address)


def _host_and_port(address: str) -> tuple[str, int]:
    """The TCP endpoint behind an address. "auto" is the cluster whose head runs on this machine."""
    if address == "auto":
        note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        if not note.exists():
            raise UserError(
                "no Ray cluster runs on this machine for --address auto; start one, or leave "
                "--address out"
            )
        address = note.read_text().strip()
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = parts.hostname, parts.port or (10001 if parts.scheme == "ray" else None)
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"'{address}' is no Ray address; write host:port, ray://host:port or auto")
    return host, port


def _probe(host: str, port: int, address: str) -> None:
    """Ask for entry, as ray.init would for half a minute or more, and settle whether this process
    shows a token.

    A token that the cluster does not ask for is as wrong as none: Ray then kills actors that such a
    driver owns.
    """
    if os.environ.get("RAY_USE_TLS"):
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    loader = AuthenticationTokenLoader.instance()
    token = (
        loader.get_raw_token(ignore_auth_mode=True)
        if loader.has_token(ignore_auth_mode=True)
        else ""
    )
    wanted = not _let_in(host, port, address, None)
    if wanted and not token:
        raise UserError(
            f"the Ray cluster at {address} asks for a token; put it in ~/.ray/auth_token or "
            "RAY_AUTH_TOKEN"
        )
    if wanted and not _let_in(host, port, address, token):
        raise UserError(
            f"the Ray cluster at {address} asks for another token than the one in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    os.environ["RAY_AUTH_MODE"] = "token" if wanted else "disabled"
    loader.reset_cache()  # ray shows, and asks for, a token that it has read, whatever the mode
    Config.initialize("")  # ray has read its settings at import


def _let_in(host: str, port: int, address: str, token: str | None) -> bool:
    """False where the cluster asks for (another) token. Raises UserError where no cluster answers
    within PROBE_S."""
    import grpc
    from ray.core.generated import (
        gcs_service_pb2,
        gcs_service_pb2_grpc,
        ray_client_pb2,
        ray_client_pb2_grpc,
    )

    metadata = [("client_id", "probe"), *([("authorization", f"Bearer {token}")] if token else [])]
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            if address.startswith("ray://"):
                ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
                ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(
                    ping, timeout=PROBE_S, metadata=metadata
                )
            else:
                asked = gcs_service_pb2.GetClusterIdRequest()
                gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(
                    asked, timeout=PROBE_S, metadata=metadata
                )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            why = error.details() or error.code().name
            raise UserError(
                f"no Ray cluster answers at {address} ({why}); start one there, or leave "
                "--address out"
            ) from error
    return True


def _ask_nodes() -> list[dict[str, Any]]:
    """Of every living node: its address, resources, this project's version there, its GPUs, its
    Python and whether it has nsys."""

    def probe() -> dict[
        str, Any
    ]:  # a closure, so that it is sent whole to nodes that may not have this project
        import shutil
        import sys
        from importlib.metadata import PackageNotFoundError, version

        try:
            found, gpus = (
                version("shard-orchestrator"),
                __import__("orchestrator.cluster.hardware", fromlist=["gpus"]).gpus(),
            )
        except (PackageNotFoundError, ImportError):
            found, gpus = None, []
        return {
            "version": found,
            "gpus": gpus,
            "python": sys.executable,
            "nsys": shutil.which("nsys") is not None,
        }

    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(probe)
    refs = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
        ).remote()
        for n in nodes
    ]
    try:
        answers = ray.get(refs, timeout=START_S)
    except RayError as error:
        raise UserError(f"a node of the cluster does not answer: {first_line(error)}") from error
    fields = [{"node": n["NodeManagerAddress"], "resources": n["Resources"]} for n in nodes]
    return [{**field, **answer} for field, answer in zip(fields, answers, strict=True)]


def _refuse_other_versions(nodes: Sequence[dict[str, Any]], mine: str) -> None:
    """Results made by two versions could not be compared, and their plans might not be
    understood."""
    for node in nodes:
        if node["version"] != mine:
            there = f"node {node['node']} of the cluster has {node['version'] or 'none'}"
            raise UserError(
                f"this machine has {PROJECT} {mine}, {there}; install the same version on both"
            )


def _without_nsys(nodes: Sequence[dict[str, Any]], device: str) -> tuple[str, ...]:
    return tuple(
        node["node"]
        for node in nodes
        if node["resources"].get(RESOURCES[device], 0) >= 1 and not node["nsys"]
    )


def _topology_of(nodes: Sequence[dict[str, Any]], device: str) -> Topology:
    devices = []
    for node in sorted(nodes, key=lambda n: n["node"]):
        for index in range(int(node["resources"].get(RESOURCES[device], 0))):
            gpu = node["gpus"][index] if device == "cuda" and index < len(node["gpus"]) else {}
            devices.append(
                Device(node["node"], index, gpu.get("memory_bytes", 0), gpu.get("name", device))
            )
    return Topology(tuple(devices))
