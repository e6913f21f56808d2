"""What a user should know about a plan that works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.cluster import nsight
from orchestrator.experiment import Experiment
from orchestrator.plan.deployments import PlannedDeployment, nodes_of
from orchestrator.plan.devices import DEFAULT_ENGINE
from orchestrator.plan.fitting import concurrent_requests
from orchestrator.plan.planning import CAN_LEAVE_OUT_COMM
from orchestrator.store.folders import folder_of
from strategies import Topology

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster


def remarks(
    experiment: Experiment,
    planned: Sequence[PlannedDeployment],
    topology: Topology,
    cluster: Cluster | None = None,
) -> Iterator[str]:
    """What was left out of a dataset, engines chosen for the user, idle replicas, requests that
    will queue, replicas on several nodes, ablations that change nothing, and where Nsight Systems
    and Nsight Compute write. An ablated layout gets no remarks of its own."""
    yield from planned[0].remarks if planned else ()
    yield from _of_starts(experiment)
    if experiment.workload == "train":
        yield from (remark for one in planned[1:] for remark in one.remarks)
        for one in planned:
            for name, why in one.kept:
                yield f"{one.deployment.strategy}: it is not run for {name}: {why}"
        return
    made = {one.deployment for one in planned}
    for one in planned:
        if one.deployment.ablation == "none":
            yield from _of_engine(experiment, one)
            yield from _of_replicas(one)
            yield from _of_memory(one, topology)
            yield from _of_nodes(one, topology)
            for what in dict.fromkeys(experiment.ablate):
                if replace(one.deployment, ablation=what) not in made:
                    yield _of_ablation(one, what)
            for name, why in one.kept:
                yield f"{one.deployment.strategy}: it is not run without {name}: {why}"
            idle = [
                name
                for name in experiment.technique
                if replace(one.deployment, ablation=name) not in made and name not in dict(one.kept)
            ]
            if idle:
                yield _of_techniques(one, idle)
    if experiment.nsys:
        yield nsight.remark(folder_of(experiment), joined=cluster is not None)
    if experiment.ncu:
        yield nsight.counting_remark(folder_of(experiment), joined=cluster is not None)


def _of_starts(experiment: Experiment) -> Iterator[str]:
    if experiment.until_ci and experiment.max_starts <= experiment.num_starts:
        yield (
            f"--until-ci adds no starts: there are {experiment.num_starts} anyhow, and "
            f"--max-starts is {experiment.max_starts}"
        )


def _of_engine(experiment: Experiment, planned: PlannedDeployment) -> Iterator[str]:
    asked = planned.deployment
    if planned.plan.placement.option("engine") and not experiment.engine:
        yield f"{asked.strategy} runs on the engine {asked.engine}, which it needs"


def _of_replicas(planned: PlannedDeployment) -> Iterator[str]:
    name, replicas = planned.deployment.strategy, planned.plan.placement.degree("dp")
    for concurrency in sorted({cell.cell.max_concurrency for cell in planned.cells}):
        if concurrency < replicas:
            idle = replicas - concurrency
            have = "has" if idle == 1 else "have"
            yield (
                f"{name} at max_concurrency {concurrency}: {idle} of {replicas} replicas {have} "
                "nothing to do"
            )


def _of_memory(planned: PlannedDeployment, topology: Topology) -> Iterator[str]:
    plan, held = planned.plan, concurrent_requests(planned.plan, topology)
    if held is not None and held < plan.max_concurrency:
        queues = planned.deployment.engine in (DEFAULT_ENGINE, "vllm")
        more = "requests queue" if queues else "this engine runs out of memory"
        yield (
            f"{planned.deployment.strategy}: KV holds {held} requests of {plan.max_len} tokens at "
            f"once; beyond that, {more}"
        )


def _of_nodes(planned: PlannedDeployment, topology: Topology) -> Iterator[str]:
    asked, nodes = planned.deployment, nodes_of(planned, topology)
    groups = planned.plan.placement.groups("tp") if nodes else ()
    apart = [group for group in groups if len({nodes[rank] for rank in group}) > 1]
    if apart:
        yield (
            f"{asked.strategy}: no node has room for tp{len(apart[0])}, so its all-reduces go "
            "through the network; a pipeline over the nodes sends less"
        )
    if planned.plan.spans_nodes:
        yield (
            f"{asked.strategy} on {asked.engine}: the nodes have no room for every replica on one "
            "of them, so a replica may have GPUs of several; their power and clocks are not sampled"
        )


def _of_ablation(planned: PlannedDeployment, what: str) -> str:
    engine, strategy = planned.deployment.engine, planned.deployment.strategy
    if what == "comm" and engine not in CAN_LEAVE_OUT_COMM:
        return f"{strategy}: the engine {engine} cannot leave out comm; it is not run without"
    where = f"{engine}, {planned.plan.device}"
    return f"{strategy}: --ablate {what} would change nothing ({where}); it is not run without"


def _of_techniques(planned: PlannedDeployment, idle: Sequence[str]) -> str:
    asked, device = planned.deployment, planned.plan.device
    return (
        f"{asked.strategy}: leaving out {', '.join(idle)} changes nothing ({asked.engine}, "
        f"{device}); it is not run without"
    )
