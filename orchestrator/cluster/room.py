"""What to say, and how long to wait, where a cluster has no room for a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group_table

from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.nodes import RESOURCES

RESERVE_S = 30.0  # to wait in any case: another job may be about to end
MOST_SHOWN = 4  # of those that hold devices


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for devices that others hold, in seconds, and whom to tell meanwhile."""

    wait_s: float = 0.0
    tell: Callable[[str], None] = print


def await_room(wait: Callable[[float], bool], why: Callable[[], str], patience: Patience) -> None:
    """Wait until `wait(seconds)` says that devices are reserved. why: says what is in the way.

    Raises RunFailed with that when RESERVE_S, or a greater patience, is over.
    """
    waited, limit = 0.0, max(RESERVE_S, patience.wait_s)
    while not wait(min(RESERVE_S, limit - waited)):
        waited += RESERVE_S
        if waited >= limit:
            advice = "" if patience.wait_s else "; --wait-for-resources 10m waits for them"
            raise RunFailed(f"{why()}{advice}")
        patience.tell(f"waiting since {waited:.0f} s, {limit:.0f} s at most: {why()}")


def shortage(ranks: int, device: str, on_one_node: bool, mine: str) -> str:
    """What is asked for, what the cluster has, what of it is free, and who holds the rest.

    device: "cuda" or "cpu". mine: the name of the placement group that found no room.
    """
    kind = RESOURCES[device]
    total, free = (
        int(found.get(kind, 0)) for found in (ray.cluster_resources(), ray.available_resources())
    )
    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind))
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
