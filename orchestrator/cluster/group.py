"""One deployment's workers: actors that start, work and end together."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from orchestrator.cluster import nsight
from orchestrator.cluster.connection import NO_MASK, RESOURCES, START_S, Cluster
from orchestrator.cluster.failures import RunFailed, explain, first_line
from orchestrator.cluster.processes import end, processes, uninterrupted
from workers import engines
from workers.actor import Worker
from workers.messages import Built, EnginePlan, RankReport, Work

__all__ = ["RunFailed", "WorkerGroup"]

RESERVE_S = 60.0  # for placement groups: somebody else's work may be ending
POLL_S = 0.5
GRACE_S = 1.0  # after a first failure, for the other ranks to say more

# NVLink multicast stays off (it is not there on every machine). NCCL need not guard calls inside
# CUDA graphs against those
# outside: both go through one stream.
WORKER_ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "NCCL_GRAPH_MIXING_SUPPORT": "0",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerGroup:
    """The actors of one deployment, in rank order. When one fails, none can go on: `kill` the group
    and start another."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        plan: EnginePlan,
        engine: str,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        # actor names are unique in a cluster that others use too
        self.name = f"{name}-{secrets.token_hex(2)}"
        self._cluster = cluster
        self._plan = plan
        self._engine = engine
        self._tags = tags
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._nodes: list[dict[str, Any]] = []
        self._reports: list[Path] = []  # of Nsight Systems, each on its rank's node

    @classmethod
    def start(
        cls,
        cluster: Cluster,
        name: str,
        plan: EnginePlan,
        engine: str,
        tags: Mapping[str, str] | None = None,
    ) -> WorkerGroup:
        """Reserve the devices and start the processes. Raises RunFailed where that cannot be done;
        nothing is left then.

        tags: under which Ray's metrics endpoint is told what the ranks do; None: it is not told.
        """
        group = cls(cluster, name, plan, engine, tags)
        try:
            group._reserve()
            group._spawn()
        except BaseException:
            group.kill()
            raise
        return group

    def build(self, timeout_s: float) -> list[Built]:
        """Build the engine on every rank. Raises RunFailed as soon as one rank has."""
        address = None
        if len(self._actors) > 1:
            rank0 = self._actors[0].open_store.remote(self._nodes[0]["address"])
            address = self._gather([rank0], "the rendezvous", START_S)[0]
        refs = [actor.build.remote(self._engine, self._plan, address) for actor in self._actors]
        return self._gather(refs, "the build", timeout_s)

    def run(self, work: Work, timeout_s: float) -> list[RankReport]:
        """Serve `work` on every rank. Raises RunFailed as soon as one rank has."""
        reports = self._gather(
            [actor.run.remote(work) for actor in self._actors], "the run", timeout_s
        )
        tables = self._gather(
            [actor.telemetry.remote() for actor in self._actors], "the end of sampling", timeout_s
        )
        return [
            replace(report, telemetry=table) for report, table in zip(reports, tables, strict=True)
        ]

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the engines free what they hold, then kill. For a group that is well."""
        refs = [actor.close.remote() for actor in self._actors]
        ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        if self._plan.nsys_dir is not None:
            self._end_under_nsys()
        self.kill()

    def kill(self) -> None:
        """End every process and give the devices back. Returns when the processes of a local
        cluster are gone."""
        with uninterrupted():
            for actor in self._actors:
                ray.kill(actor, no_restart=True)
            if self._group is not None:
                remove_placement_group(self._group)
            if self._cluster.embedded:
                end(processes(node["pid"] for node in self._nodes))
            self._actors, self._nodes, self._group = [], [], None

    def _end_under_nsys(self) -> None:
        """Let every process end by itself and nsys write its report: what the profiler still holds
        dies with a killed one."""
        for actor in self._actors:
            actor.__ray_terminate__.remote()
        reports: dict[str, dict[str, int]] = {}  # by the node they are on
        for rank, node in enumerate(self._nodes):
            reports.setdefault(node["node_id"], {})[str(self._reports[rank])] = rank
        task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": self._environment()})(
            nsight.name_reports
        )
        refs = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(ranks, nsight.WRITE_S)
            for node, ranks in reports.items()
        ]
        try:
            complaints = [
                said
                for answer in ray.get(refs, timeout=nsight.WRITE_S + START_S)
                for said in answer
            ]
        except RayError as error:
            complaints = [f"nsys did not write any report of {self.name} ({first_line(error)})"]
        for complaint in complaints:
            logging.getLogger(__name__).warning(complaint)

    # -- starting

    @property
    def _bundles(self) -> list[dict[str, float]]:
        """One device a process; all of them for an engine that drives every device from one."""
        ranks, resource = self._plan.placement.num_ranks, RESOURCES[self._plan.device]
        single = engines.create(self._engine).processes == "single"
        return [{resource: ranks}] if single else [{resource: 1}] * ranks

    def _reserve(self) -> None:
        bundles = self._bundles
        devices = [device.node for device in self._cluster.topology().devices]
        one_node = self._plan.placement.num_ranks <= max(map(devices.count, devices), default=0)
        self._group = placement_group(
            bundles, strategy="STRICT_PACK" if one_node else "PACK", name=self.name
        )
        if not self._group.wait(RESERVE_S):
            needed, what = self._plan.placement.num_ranks, RESOURCES[self._plan.device] + "s"
            raise RunFailed(
                f"{needed} free {what} could not be reserved within {RESERVE_S:.0f} s; others are "
                "using the cluster"
            )

    def _spawn(self) -> None:
        """Start the actors, ask where they are, and number them by node and device."""
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        actors = [
            self._actor(bundle, index, node)
            for index, (bundle, node) in enumerate(self._ordered_bundles(addresses))
        ]
        self._actors = actors
        places = self._gather([actor.node.remote() for actor in actors], "the start", START_S)
        self._nodes = [{**place, "address": addresses[place["node_id"]]} for place in places]
        order = sorted(
            range(len(actors)),
            key=lambda i: (self._nodes[i]["address"], self._nodes[i]["device_index"], i),
        )
        self._actors = [actors[i] for i in order]
        self._nodes = [self._nodes[i] for i in order]
        self._reports = [self._report(i) for i in order] if self._plan.nsys_dir is not None else []
        self._gather(
            [actor.assign.remote(rank) for rank, actor in enumerate(self._actors)],
            "the start",
            START_S,
        )
        if self._tags is not None:
            self._gather(
                [actor.publish.remote(dict(self._tags)) for actor in self._actors],
                "the start",
                START_S,
            )

    def _ordered_bundles(self, addresses: Mapping[str, str]) -> list[tuple[int, str]]:
        """Bundles and their nodes' addresses, by node, so that names and ranks agree (on a node,
        Ray hands GPUs out in order)."""
        assert self._group is not None
        where = placement_group_table(self._group)["bundles_to_node_id"]
        return sorted(
            ((bundle, addresses[node]) for bundle, node in where.items()),
            key=lambda found: (found[1], found[0]),
        )

    def _actor(self, bundle: int, rank: int, node: str) -> Any:
        assert self._group is not None
        resource, amount = next(iter(self._bundles[bundle].items()))
        remote = ray.remote(Worker).options(
            name=f"{self.name}/rank{rank}",
            num_cpus=amount if resource == "CPU" else 0,
            num_gpus=amount if resource == "GPU" else 0,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle
            ),
            runtime_env={"env_vars": self._environment(), **self._watched(rank, node)},
        )
        return remote.remote()

    def _watched(self, index: int, node: str) -> dict[str, str]:
        """What puts a process on the node at this address under Nsight Systems, if that is to
        watch."""
        if self._plan.nsys_dir is None:
            return {}
        return {
            "py_executable": nsight.command(
                self._report(index), self._cluster.pythons.get(node, sys.executable)
            )
        }

    def _report(self, index: int) -> Path:
        """Where the report of the process that was started as number `index` is written; its rank
        is not known then."""
        assert self._plan.nsys_dir is not None
        return Path(self._plan.nsys_dir, f"{self.name.rpartition('-')[2]}-{index}{nsight.SUFFIX}")

    def _environment(self) -> dict[str, str]:
        """Every rank sees every GPU of its node, as NCCL's peer access wants it; a process that
        drives several sees only those."""
        environment = dict(WORKER_ENVIRONMENT)
        environment[NO_MASK] = str(int(len(self._bundles) == self._plan.placement.num_ranks))
        if self._plan.ablation == "p2p":
            environment["NCCL_P2P_DISABLE"] = "1"
        if self._plan.device == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        if self._cluster.embedded:
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        return environment

    # -- waiting

    def _gather(self, refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
        """Answers in the order of `refs`. Raises RunFailed at the first failure, or when
        `timeout_s` is over."""
        answers: dict[int, Any] = {}
        pending = {ref: rank for rank, ref in enumerate(refs)}
        deadline = time.monotonic() + timeout_s
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
            for ref in ready:
                rank = pending.pop(ref)
                try:
                    answers[rank] = ray.get(ref)
                except RayError as error:
                    raise explain([(rank, error), *self._other_failures(pending)]) from None
            if pending and time.monotonic() > deadline:
                ranks = ", ".join(map(str, sorted(pending.values())))
                raise RunFailed(
                    f"timeout: {what} took longer than {timeout_s:g} s (waiting for rank {ranks})"
                )
        return [answers[rank] for rank in range(len(refs))]

    def _other_failures(self, pending: dict[Any, int]) -> list[tuple[int, RayError]]:
        """What the other ranks have to say soon after the first failure: it may be the cause of
        it."""
        if not pending:
            return []
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=GRACE_S)
        failures = []
        for ref in ready:
            try:
                ray.get(ref)
            except RayError as error:
                failures.append((pending[ref], error))
        return failures
