"""One deployment's workers: actors that start, work and end together."""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster import nsight
from orchestrator.cluster.connection import NO_MASK, Cluster
from orchestrator.cluster.environment import WORKER_ENVIRONMENT, import_path
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.hanging import hanging, stands_of
from orchestrator.cluster.main_memory import MemoryWatch
from orchestrator.cluster.nodes import RESOURCES, START_S, of_lost_nodes
from orchestrator.cluster.processes import end, processes, uninterrupted
from orchestrator.cluster.ranks import Place, in_rank_order, meeting_host, ranks_at, shared_out
from orchestrator.cluster.room import Patience, Reservation
from orchestrator.cluster.session import TEMPORARY
from orchestrator.cluster.waiting import ask, gather, patiently
from orchestrator.errors import ClusterLost
from workers.actor import Worker
from workers.engines import ranks_of_process
from workers.messages import Built, EnginePlan, Process, RankReport, TrainingWork, Work

__all__ = ["RunFailed", "WorkerGroup"]

CLOSE_S = 5.0  # for engines to free what they hold
T = TypeVar("T")
Answer = TypeVar("Answer", Built, RankReport)


class WorkerGroup:
    """The actors of one deployment, in order of their first ranks. When one fails, none can go on:
    `kill` the group and start another.

    tags: of the metrics that the ranks publish through Ray; None: they publish none. patience: with
    devices that others hold.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        plan: EnginePlan,
        engine: str,
        tags: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        # actor names must be unique in a cluster, which others may use too
        self.name = f"{name}-{secrets.token_hex(2)}"
        self._cluster = cluster
        self._plan = plan
        self._tags = tags
        self._patience = patience or Patience()
        self._engine = engine
        self._reservation = Reservation(cluster, self.name, plan, engine)
        self._step = ranks_of_process(engine, plan)
        self._actors: list[Any] = []
        self._places: list[Place] = []
        self._of_bundles: tuple[str, ...] = ()  # addresses of their nodes
        self._reports: list[Path] = []  # of Nsight Systems, each on its rank's node
        self._memory = MemoryWatch()
        self._counted = 0  # the rank that Nsight Compute watches, where it does

    @classmethod
    def start(
        cls,
        cluster: Cluster,
        name: str,
        plan: EnginePlan,
        engine: str,
        tags: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> WorkerGroup:
        """Reserve the devices and start the processes. Raises RunFailed where that cannot be done;
        then all that was started is ended."""
        group = cls(cluster, name, plan, engine, tags, patience)
        try:
            group._reservation.make(group._patience)
            group._spawn()
        except BaseException:
            group.kill()
            raise
        return group

    def build(self, timeout_s: float) -> list[Built]:
        """Build the engine on every rank. Raises RunFailed as soon as one rank has failed."""
        address = None
        if len(self._actors) > 1:
            asked = ask(self._actors[:1], Worker.open_store, meeting_host(self._places))
            address = self._gather(asked, "the rendezvous", START_S)[0]
        plan = self._shared(self._plan)
        refs = ask(self._actors, Worker.build, self._engine, plan, address)
        return list(chain.from_iterable(map(_each, self._gather(refs, "the build", timeout_s))))

    def run(self, work: Work | TrainingWork, timeout_s: float) -> list[RankReport]:
        """Serve `work` on every rank. Raises RunFailed as soon as one rank has failed."""
        refs = ask(self._actors, Worker.run, self._shared(work))
        reports = self._gather(refs, "the run", timeout_s)
        sampled = ask(self._actors, Worker.telemetry)
        tables = self._gather(sampled, "the end of sampling", timeout_s)
        return [
            replace(report, telemetry=None if number else table)
            for answer, table in zip(reports, tables, strict=True)
            for number, report in enumerate(_each(answer))
        ]

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Let the engines free what they hold, then kill. For a group that has not failed."""
        refs = ask(self._actors, Worker.close)
        ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        if self._plan.nsys_dir is not None:
            self._end_under_nsys()
        self.kill()

    def counters(self, timeout_s: float = nsight.WRITE_S) -> tuple[int, str]:
        """Let the process that Nsight Compute watches end, and kill the group. Returns its rank and
        what Nsight Compute wrote, empty where there is nothing after `timeout_s`."""
        assert self._plan.ncu_file is not None
        ray.wait(refs := ask(self._actors, Worker.close), num_returns=len(refs), timeout=CLOSE_S)
        process = self._counted // self._step
        ask(self._actors[process : process + 1], Worker.leave)
        place, report = self._places[process], Path(self._plan.ncu_file)
        text = nsight.read_counters(place, report, self._environment(), timeout_s)
        self.kill()
        return self._counted, text

    def kill(self) -> None:
        """End every process and give the devices back. Returns when the processes of a local
        cluster are gone."""
        with uninterrupted():
            with contextlib.suppress(ClusterLost):  # then they have ended with it
                self._cluster.check_alive()
                patiently(self._give_back, self._cluster.check_alive)
            if self._cluster.embedded:
                end(processes(place.pid for place in self._places))
            self._actors, self._places = [], []

    def _give_back(self) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._reservation.release()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Rank -> the address of its node. Of a process whose ranks are on several nodes these are
        the nodes of its bundles, in their order."""
        if self._plan.spans_nodes:
            return self._of_bundles
        return tuple(place.address for place in self._places for _ in range(self._step))

    def _gather(self, refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
        """The answers of all ranks. Raises RunFailed, which names a node that was lost."""
        check = self._cluster.check_alive
        try:
            return gather(refs, what, timeout_s, self._check, self._hanging, self._step)
        except RunFailed as failure:
            if self._cluster.embedded:
                raise failure.ended_by(self._memory.lack) from None
            raise of_lost_nodes(failure, dict(enumerate(self.nodes)), check) from None

    def _check(self) -> None:
        """Raise ClusterLost where the cluster is gone, and see what its workers leave of main
        memory where they are on this machine."""
        self._cluster.check_alive()
        if self._cluster.embedded:
            self._memory.look()

    def _hanging(self, pending: Sequence[int]) -> str:
        """Which of the ranks that have not answered the others wait for."""
        stands = stands_of(
            [self._places[rank // self._step] for rank in pending], self._cluster.embedded
        )
        return hanging(dict(zip(pending, stands, strict=True)))

    # -- starting

    def _spawn(self) -> None:
        """Start the actors, ask where they are, and number them by `Placement.devices`."""
        nodes = self._ask_ray(ray.nodes)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        devices = self._plan.placement.devices
        shares = self._shares(addresses)
        bundles = self._ask_ray(self._reservation.nodes) if self._plan.spans_nodes else {}
        self._of_bundles = tuple(addresses[node] for _, node in sorted(bundles.items()))
        expected = ranks_at(devices, len(shares))
        names = [f"{self.name}/rank{rank}" for rank in expected]
        for index, (share, node) in enumerate(shares):
            under = self._under(index, expected[index], node)
            make = functools.partial(self._actor, share[0], names[index], under)
            self._actors.append(self._ask_ray(make))
        places = self._ask_places(addresses)
        order = in_rank_order(places, devices)
        self._actors = [self._actors[i] for i in order]
        self._places = [places[i] for i in order]
        self._reports = [self._report(i) for i in order] if self._plan.nsys_dir is not None else []
        self._counted = self._step * order.index(expected.index(0))
        firsts = range(0, self._plan.placement.num_ranks, self._step)
        given = [shares[i][0] if self._plan.spans_nodes else () for i in order]
        numbered = zip(self._actors, firsts, given, strict=True)
        assigned = [ask([actor], Worker.assign, rank, own) for actor, rank, own in numbered]
        self._gather(list(chain(*assigned)), "the start", START_S)
        if self._tags is not None:
            asked = ask(self._actors, Worker.publish, dict(self._tags))
            self._gather(asked, "the start", START_S)

    def _shared(self, value: T) -> T:
        """A reference to what every rank gets, which Ray puts in its place there: sent to each of
        them, something that is longer the more ranks there are would take their square."""
        found: T = self._ask_ray(lambda: ray.put(value))
        return found

    def _ask_ray(self, call: Callable[[], T]) -> T:
        return patiently(call, self._cluster.check_alive)

    def _shares(self, addresses: Mapping[str, str]) -> list[tuple[tuple[int, ...], str]]:
        """The bundles of each process and the address of its node, sorted by that. Ray hands out
        the GPUs of a node in order, so the actors most likely get the ranks in their names. Where
        they really are is known only once they run."""
        found = self._ask_ray(self._reservation.nodes)
        nodes = {bundle: addresses[node] for bundle, node in found.items()}
        shares = shared_out(nodes, self._plan.placement.num_ranks // self._step)
        return [(share, nodes[share[0]]) for share in shares]

    def _ask_places(self, addresses: Mapping[str, str]) -> list[Place]:
        """Where the actors are, in the order they were started."""
        asked = ask(self._actors, Worker.process)
        found: list[Process] = gather(asked, "the start", START_S, self._cluster.check_alive)
        return [
            Place(addresses[one.node_id], one.node_id, one.device_index, one.pid, one.progress_fd)
            for one in found
        ]

    def _actor(self, bundle: int, name: str, runtime: Mapping[str, object]) -> Any:
        """The actor in a bundle: it has the devices of that, or none where its engine takes those
        of several bundles."""
        resource, environment = RESOURCES[self._plan.device], self._environment()
        amount = 0 if self._plan.spans_nodes else self._step
        # Ray starts Python twice where it is to give a process an environment: most of a second.
        by_ray = not self._cluster.embedded or environment[NO_MASK] != "1" or bool(runtime)
        given = {"runtime_env": {"env_vars": environment, **runtime}} if by_ray else {}
        remote = ray.remote(Worker).options(
            name=name,
            num_cpus=amount if resource == "CPU" else 0,
            num_gpus=amount if resource == "GPU" else 0,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._reservation.group,
                placement_group_bundle_index=bundle,
                placement_group_capture_child_tasks=self._plan.spans_nodes,
            ),
            **given,
        )
        return remote.remote(environment=None if by_ray else environment)

    def _environment(self) -> dict[str, str]:
        """The environment of every worker. A rank sees every GPU of its node, because NCCL's peer
        access needs that. A process that drives several GPUs sees only those."""
        environment = dict(WORKER_ENVIRONMENT)
        environment[NO_MASK] = str(int(self._step == 1 or self._plan.spans_nodes))
        if self._plan.ablation == "p2p":
            environment["NCCL_P2P_DISABLE"] = "1"
        if self._plan.device == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        if self._cluster.session:  # Ray has its own; what is compiled there is for later commands
            environment[TEMPORARY] = tempfile.gettempdir()
        if self._cluster.embedded:
            environment["PYTHONPATH"] = import_path()
        return environment

    # -- under Nsight Systems and Nsight Compute

    def _under(self, index: int, rank: int, node: str) -> dict[str, str]:
        """The runtime environment that starts process number `index`, on the node at this address,
        under Nsight Systems, or the one that most likely gets rank 0 under Nsight Compute. Empty if
        that was not asked for."""
        python = self._cluster.python_of(node)
        if self._plan.nsys_dir is not None:
            return {"py_executable": nsight.command(self._report(index), python)}
        if self._plan.ncu_file is not None and rank == 0:
            report = Path(self._plan.ncu_file)
            return {"py_executable": nsight.counting_command(report, python)}
        return {}

    def _report(self, index: int) -> Path:
        """The report of the process that is started as number `index`. Its rank is not yet known
        then."""
        assert self._plan.nsys_dir is not None
        return Path(self._plan.nsys_dir, f"{self.name.rpartition('-')[2]}-{index}{nsight.SUFFIX}")

    def _end_under_nsys(self) -> None:
        """Let every process end by itself, so that nsys writes its report. Killing a process would
        lose the data that the profiler still holds."""
        ask(self._actors, Worker.leave)
        complaints = nsight.name_everywhere(
            self._places, self._reports, self._environment(), self.name
        )
        for complaint in complaints:
            logging.getLogger(__name__).warning(complaint)


def _each(answer: Answer | Sequence[Answer]) -> Iterator[Answer]:
    """What a process answered for each of its ranks."""
    yield from (answer,) if isinstance(answer, (Built, RankReport)) else answer
