"""Which process is which rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.rendezvous import LOOPBACK


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is: the address and Ray's id of its node, its GPU there as torch counts (0 on
    CPU), its process id, and the descriptor under which it keeps where it stands."""

    address: str
    node_id: str
    device_index: int
    pid: int
    progress_fd: int = -1


def ranks_at(devices: Sequence[int], count: int) -> list[int]:
    """The rank of each of `count` processes under `Placement.devices` (rank -> device). The
    processes are ordered by device. A process that drives every device is rank 0."""
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


def meeting_host(places: Sequence[Place]) -> str:
    """The address at which rank 0 opens the rendezvous, for processes in rank order: its node's, or
    loopback where all of them are on one node."""
    one_node = len({place.node_id for place in places}) == 1
    return LOOPBACK if one_node else places[0].address


def shared_out(nodes: Mapping[int, str], processes: int) -> list[tuple[int, ...]]:
    """The bundles of each of `processes`, equally many, ordered by the node of the first of them.
    Those of one node are kept together where they can be, which the nodes that have most of them
    can best. nodes: bundle -> the address of its node."""
    counts = Counter(nodes.values())
    ordered = sorted(nodes, key=lambda bundle: (-counts[nodes[bundle]], nodes[bundle], bundle))
    size = len(ordered) // processes
    shares = [tuple(ordered[first : first + size]) for first in range(0, len(ordered), size)]
    return sorted(shares, key=lambda share: (nodes[share[0]], share))
