"""The devices of a layout, reserved: on which nodes, what to say, and how long to wait, where a
cluster has no room."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.nodes import RESOURCES, alive, living
from orchestrator.cluster.ranks import planned_nodes, ranks_of_bundle
from orchestrator.cluster.waiting import patiently
from workers.messages import EnginePlan

T = TypeVar("T")

PLANNED_S = 3.0  # for nodes that nobody holds
LOOK_S = 1.0  # between two looks whether a node has come back
NODE_LABEL = "ray.io/node-id"  # which Ray gives each node
RESERVE_S = 30.0  # to wait in any case: another job may be about to end
FIRST_WORD_S, NEXT_WORD_S = 10.0, 30.0  # after which it is said what is waited for, and said again
MOST_SHOWN = 4  # of those that hold devices


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for devices, in seconds, and whom to tell meanwhile. wait_s: 0 where nothing
    was asked for. back_s: for a node that is gone, where wait_s is less."""

    wait_s: float = 0.0
    tell: Callable[[str], None] = print
    back_s: float = 0.0


@dataclass(slots=True)
class Reservation:
    """The devices of one group of workers. bundles: those that are reserved together, in the
    placement group `group`; None where nothing is reserved."""

    cluster: Cluster
    name: str
    plan: EnginePlan
    engine: str
    bundles: list[dict[str, float]] = field(default_factory=list)
    group: PlacementGroup | None = None

    def make(self, patience: Patience) -> None:
        """Reserve. Raises RunFailed where there is no room, or ClusterLost."""
        began = time.monotonic()
        counts = self._counts_with_room(patience)
        room = list(counts.values())
        ranks = self.plan.placement.num_ranks
        on_one = ranks <= max(room, default=0)
        strategy = "STRICT_PACK" if on_one else "PACK"
        if len(counts) > 1 and self._as_planned(strategy, counts):
            return
        group = self._ask(strategy)
        await_room(
            lambda seconds: self._patiently(lambda: group.wait(seconds)),
            lambda: self._patiently(lambda: shortage(ranks, self.plan.device, on_one, self.name)),
            max(RESERVE_S, patience.wait_s - (time.monotonic() - began)),
            patience,
        )

    def nodes(self) -> dict[int, str]:
        """Bundle -> Ray's id of its node."""
        return dict(placement_group_table(self.group)["bundles_to_node_id"])

    def release(self) -> None:
        """Give the devices back, if any are reserved."""
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None

    def _ask(self, strategy: str, selector: Sequence[dict[str, str]] = ()) -> PlacementGroup:
        chosen = {"bundle_label_selector": list(selector)} if selector else {}
        make = functools.partial(placement_group, self.bundles, strategy, self.name, **chosen)
        self.group = self._patiently(make)
        return self.group

    def _as_planned(self, strategy: str, counts: Mapping[str, int]) -> bool:
        """Reserve on the nodes that the plan names; whether they are free. Others may hold them,
        while there is room elsewhere."""
        size = int(next(iter(self.bundles[0].values())))
        planned = planned_nodes(counts, len(self.bundles), size)
        if len(planned) < len(self.bundles):
            return False
        ids = {node["NodeManagerAddress"]: node["NodeID"] for node in self._patiently(alive)}
        if not set(planned) <= set(ids):  # one died since it was counted
            return False
        group = self._ask(strategy, [{NODE_LABEL: ids[node]} for node in planned])
        if self._patiently(lambda: bool(group.wait(PLANNED_S))):
            return True
        self._patiently(self.release)
        return False

    def _counts_with_room(self, patience: Patience) -> Mapping[str, int]:
        """Address -> devices of each node that lives, once they could hold the bundles if nobody
        else did. Where they could not, a node that is gone may come back."""
        counts: Mapping[str, int] = {}

        def lacking() -> str:
            return too_large(self.bundles, list(counts.values())) + self._gone(counts)

        def has_room(seconds: float) -> bool:
            nonlocal counts
            deadline = time.monotonic() + seconds
            while True:
                counts = self._counts()
                room = list(counts.values())
                self.bundles = bundles_for(self.plan, self.engine, room)
                fits = not too_large(self.bundles, room)
                if fits or time.monotonic() > deadline:
                    return fits
                time.sleep(min(LOOK_S, max(0.0, deadline - time.monotonic())))

        await_room(has_room, lacking, max(patience.wait_s, patience.back_s), patience)
        return counts

    def _gone(self, counts: Mapping[str, int]) -> str:
        """Which nodes that were there when the cluster was joined have gone since; what to do where
        none has."""
        had = (node.address for node in self.cluster.nodes if node.has(self.plan.device))
        gone = sorted(set(had) - set(counts))
        if not gone:
            return "; use fewer ranks a replica"
        return f"; gone since it was joined: {', '.join(gone)}"

    def _counts(self) -> Mapping[str, int]:
        """Address -> devices of each node that lives."""
        if self.cluster.embedded:
            return Counter(one.node for one in self.cluster.topology(self.plan.device).devices)
        return self._patiently(lambda: living(self.plan.device))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self.cluster.check_alive)


def bundles_for(
    plan: EnginePlan, engine: str, counts: Sequence[int] = ()
) -> list[dict[str, float]]:
    """The bundles to reserve, each with a device for every rank in it: see `ranks_of_bundle`."""
    size = ranks_of_bundle(plan, engine, counts)
    return [{RESOURCES[plan.device]: size}] * (plan.placement.num_ranks // size)


def too_large(bundles: Sequence[Mapping[str, float]], counts: Sequence[int]) -> str:
    """Why the bundles, which are alike, can never be reserved; empty where they can. counts:
    devices of each node."""
    resource, size = next(iter(bundles[0].items()))
    if sum(count // size for count in counts) >= len(bundles):
        return ""
    return (
        f"{len(bundles)} x {size:g} {resource}s, each {size:g} of them on one node, are more than "
        f"this cluster has: its nodes have {', '.join(map(str, counts)) or 'none'}"
    )


def await_room(
    wait: Callable[[float], bool], why: Callable[[], str], limit_s: float, patience: Patience
) -> None:
    """Wait until `wait(seconds)` says that there is room. why: says what is in the way.

    Raises RunFailed with that when `limit_s` is over.
    """
    waited, step = 0.0, min(FIRST_WORD_S, limit_s)
    while not wait(step):
        waited += step
        if waited >= limit_s:
            advice = "" if patience.wait_s else "; --wait-for-resources 10m waits for them"
            raise RunFailed(f"{why()}{advice}")
        patience.tell(f"waiting since {waited:.0f} s, {limit_s:.0f} s at most: {why()}")
        step = min(NEXT_WORD_S, limit_s - waited)


def shortage(ranks: int, device: str, on_one_node: bool, mine: str) -> str:
    """What is asked for, what the cluster has, what of it is free, and who holds the rest.

    device: "cuda" or "cpu". mine: the name of the placement group that found no room.
    """
    kind = RESOURCES[device]
    total, free = (
        int(found.get(kind, 0)) for found in (ray.cluster_resources(), ray.available_resources())
    )
    nodes = len(living(device))
    where = " of one node" if on_one_node and nodes > 1 else ""
    held = ", ".join(_holders(kind, mine, total - free))
    return (
        f"{ranks} free {kind}s{where} could not be reserved: the cluster has {total} on {nodes} "
        f"node{'s' if nodes > 1 else ''}, {free} free" + (f"; held by {held}" if held else "")
    )


def _holders(kind: str, mine: str, taken: int) -> Iterator[str]:
    """Who holds devices and how many, the greatest first."""
    counts: Counter[str] = Counter()
    for group in placement_group_table().values():
        if group["state"] == "CREATED" and group["name"] != mine:
            asked = sum(bundle.get(kind, 0) for bundle in group["bundles"].values())
            counts[group["name"] or group["placement_group_id"]] += int(asked)
    counts["others"] += max(0, taken - counts.total())
    found = [(name, count) for name, count in counts.most_common() if count]
    for name, count in found[:MOST_SHOWN]:
        yield f"{name} ({count})"
    if found[MOST_SHOWN:]:
        yield f"{len(found) - MOST_SHOWN} more"
