"""Which process is which rank, and the process itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from workers.actor import Worker


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is: the address and Ray's id of its node, its GPU there as torch counts (0 on
    CPU), and its process id."""

    address: str
    node_id: str
    device_index: int
    pid: int


class RankWorker(Worker):
    """A worker that ends by itself when it is told to."""

    def leave(self) -> None:
        """End this process as a program ends, so that a profiler around it can write its report.
        Whoever waits for the answer is told that the actor has died."""
        ray.actor.exit_actor()


def ranks_at(devices: Sequence[int], count: int) -> list[int]:
    """Of each of `count` processes, ordered by device, its rank under `Placement.devices` (rank ->
    device). An engine that drives every device from one process has that as rank 0."""
    if len(devices) != count:
        return list(range(count))
    return [list(devices).index(place) for place in range(count)]


def in_rank_order(places: Sequence[Place], devices: Sequence[int]) -> list[int]:
    """For each rank the index in `places` of its process: rank r is on the device at place
    devices[r] when they are ordered by (address of the node, index there). Processes that share a
    device, as on CPU, keep the order of `places`."""
    by_device = sorted(
        range(len(places)), key=lambda i: (places[i].address, places[i].device_index, i)
    )
    ranks = ranks_at(devices, len(places))
    return [process for _, process in sorted(zip(ranks, by_device, strict=True))]
