"""Ray: start a cluster or join one, and know its devices.

Ray carries control and results only. `ray stop` is never called: it would hit clusters that are not
ours.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

# Ray reads this variable at import and drops the log lines that match it. That a worker died is in
# our own line on the run.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")

import psutil
import ray

from orchestrator.cluster import health, nodes, ray_private
from orchestrator.cluster.address import host_and_port
from orchestrator.cluster.failures import first_line
from orchestrator.cluster.health import JOINED_S, LOCAL_S, Server
from orchestrator.cluster.nodes import RESOURCES, Node
from orchestrator.cluster.processes import children, end, kept_handlers, kill, uninterrupted
from orchestrator.cluster.session import RaySession, session
from orchestrator.cluster.starting import serves, watched
from orchestrator.errors import UserError
from strategies.shapes import Topology

NAMESPACE = "orchestrator"
PROBE_S = 2.5  # to wait for the first answer; a slower address counts as no cluster
OBJECT_STORE_BYTES = 256 << 20  # only records pass through it
# between two reports of a process to the metrics endpoint; Ray's 10 s would miss a short run
METRICS_MS = 2000

NO_MASK = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
# By itself Ray has its workers give way (15) to all that serves them, and to all else on a machine.
NICENESS = "RAY_worker_niceness"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster that this process is connected to, and what its nodes have.

    embedded: it was started here, and ends with the context of `start`. dashboard: its URL, once
    it answers. servers: the processes without which nothing works. session: the folder of a local
    Ray.
    """

    nodes: tuple[Node, ...]
    embedded: bool
    address: str
    dashboard: Future[str | None]
    servers: tuple[Server, ...] = ()
    session: RaySession | None = None

    @property
    def logs(self) -> str | None:
        """The folder of sockets and logs, where it is ours."""
        return None if self.session is None else str(self.session.folder)

    def keep_logs(self, why: str) -> None:
        """Leave the logs of a local Ray where they are when it ends."""
        if self.session is not None:
            self.session.keep(why)

    def check_alive(self) -> None:
        """Raise ClusterLost where a server of Ray has died."""
        health.check(self.servers)

    def topology(self, device: str) -> Topology:
        """The devices of one kind ("cuda" or "cpu"), ordered by node and index."""
        return nodes.topology_of(self.nodes, device)

    def without(self, tool: str, device: str) -> tuple[str, ...]:
        """Addresses of the nodes that may get a rank and do not have the profiler `tool`."""
        return nodes.without(tool, self.nodes, device)

    def python_of(self, address: str) -> str:
        """The interpreter of the workers on the node at `address`."""
        found = (node.python for node in self.nodes if node.address == address)
        return next(found, sys.executable)

    def check_room(self, device: str, ranks: int) -> None:
        """Raise UserError where there are fewer devices of one kind than `ranks`."""
        where = "this machine" if self.embedded else f"the cluster at {self.address}"
        _check_room(len(self.topology(device).devices), device, ranks, where)


def connect(
    address: str | None, device: str, ranks: int, dashboard: bool = True
) -> contextlib.AbstractContextManager[Cluster]:
    """A cluster with room for `ranks` ranks on `device` ("cuda" or "cpu"): the one at `address`, or
    a local one where that is None. Raises UserError as `join` and `start` do."""
    if address is None:
        return start(device, ranks, dashboard)
    return _join_with_room(address, device, ranks)


@contextlib.contextmanager
def join(address: str) -> Iterator[Cluster]:
    """The cluster that runs at `address`: "host:port", "auto" or "ray://host:port". It is left
    running. Raises UserError where there is none, or a node has another version of this project."""
    check_address(address)
    with _connection():
        yield _join(address)


@contextlib.contextmanager
def start(device: str, ranks: int, dashboard: bool = True) -> Iterator[Cluster]:
    """A local cluster for `ranks` ranks, which ends with this context. CPU ranks may outnumber the
    cores. Raises UserError where there are fewer GPUs than ranks."""
    here = nodes.this_node(device, ranks)
    _check_room(here.has(device), device, ranks, "this machine")
    with session() as mine, ray_private.token_in(mine.folder), _connection():
        cluster = _start(here, ranks, dashboard, mine)
        try:
            yield cluster
            wait([cluster.dashboard])  # so that it is told of, however short the runs are
        except Exception as error:
            mine.keep(first_line(error))
            raise
        finally:
            cluster.dashboard.cancel()


def check_address(address: str) -> None:
    """Raise UserError where no Ray cluster answers at `address`, or where it asks for a token that
    this process does not have. From then on this process sends its token if the cluster asks for
    one."""
    host, port = host_and_port(address)
    if os.environ.get("RAY_USE_TLS"):
        return
    token, where = ray_private.own_token(), f"the Ray cluster at {address}"
    wanted = not _lets_in(address, host, port, "")
    if wanted and not token:
        raise UserError(f"{where} asks for a token; put it in ~/.ray/auth_token or RAY_AUTH_TOKEN")
    if wanted and not _lets_in(address, host, port, token):
        raise UserError(
            f"{where} asks for another token than the one in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    ray_private.use_token(wanted)


def _lets_in(address: str, host: str, port: int, token: str) -> bool:
    try:
        return ray_private.lets_in(address, host, port, token, PROBE_S)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); start one there, or leave --address "
            "out"
        ) from error


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """At the end of the block, disconnect from Ray and end the processes that were started
    inside."""
    assert not ray.is_initialized(), (
        "this process is connected to a Ray cluster already, which is not ours to end"
    )
    before = children()
    try:
        yield
    finally:
        with uninterrupted():
            _disconnect([child for child in children() if child not in before])


def _disconnect(started: Sequence[psutil.Process]) -> None:
    """Leave Ray and end `started`. All but its servers is killed first: Ray would ask one process
    after the other to end, and wait for each, but it waits even longer for a server that is
    gone."""
    kill(one for one in started if not serves(one))
    with contextlib.suppress(Exception):  # of a Ray whose servers have died
        ray.shutdown()
    end(started)


@contextlib.contextmanager
def _join_with_room(address: str, device: str, ranks: int) -> Iterator[Cluster]:
    with join(address) as cluster:
        cluster.check_room(device, ranks)
        yield cluster


def _start(here: Node, ranks: int, dashboard: bool, mine: RaySession) -> Cluster:
    os.environ[NO_MASK] = "1"
    os.environ.setdefault(NICENESS, "0")
    try:
        with (
            mine.marking(),
            watched(mine.keep),
            ray_private.on_loopback(),
            ray_private.lean(dashboard),
            ray_private.interruptible(),
            ray_private.raylet_at_once(),
            ray_private.dashboard_beside() as url,
            _init() as init,
        ):
            init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, ranks),
                include_dashboard=dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
                **ray_private.settings(METRICS_MS, mine.folder),
            )
    except Exception as error:
        mine.keep(first_line(error))
        raise UserError(
            f"Ray could not be started: {first_line(error)}; its logs are kept in {mine.folder}"
        ) from error
    return Cluster((here,), True, "local", url, _servers("local Ray", LOCAL_S), mine)


def _join(address: str) -> Cluster:
    try:
        with _init() as init:
            context = init(address=address)
    except Exception as error:
        raise UserError(
            f"the Ray cluster at {address} did not let us in: {first_line(error)}"
        ) from error
    url = getattr(context, "dashboard_url", None)  # Ray does not give it to a client of ray://
    name = f"the Ray cluster at {address}"
    if address.startswith(ray_private.CLIENT_PREFIX):
        server = Server(f"server of {name}", *host_and_port(address), JOINED_S)
        servers: tuple[Server, ...] = (server,)
    else:
        servers = _servers(name, JOINED_S)
    dashboard = Future[str | None]()
    dashboard.set_result(ray_private.url_of(url))
    return Cluster(nodes.ask_nodes(), False, address, dashboard, servers)


@contextlib.contextmanager
def _init() -> Iterator[Callable[..., Any]]:
    """`ray.init` with what is the same for every cluster; the signal handlers stay."""
    ray_private.be_quiet()
    with kept_handlers(), ray_private.without_signal_handlers():
        yield functools.partial(
            ray.init, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )


def _servers(name: str, answer_s: float) -> tuple[Server, ...]:
    """The GCS of the cluster that this process is connected to, and the raylet of this node."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    mine = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    raylet = mine["NodeManagerAddress"], mine["NodeManagerPort"]
    gcs = Server(f"GCS of {name}", host, int(port), answer_s)
    return gcs, Server(f"raylet of {name}", *raylet, answer_s)


def _check_room(there: int, device: str, ranks: int, where: str) -> None:
    if there < ranks:
        raise UserError(
            f"the layout needs {ranks} {RESOURCES[device]}s, {where} has {there}; use a smaller "
            "layout or another --address"
        )
