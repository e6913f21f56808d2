"""Which process is which rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.engines import ranks_of_process
from workers.messages import EnginePlan
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
    rank_of = {place: rank for rank, place in enumerate(devices)}
    return [rank_of[place] for place in range(count)]


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


def together(mesh: Sequence[tuple[str, int]], counts: Sequence[int]) -> int:
    """How many neighbouring ranks share a node where no node has room for all: a group along the
    innermost axes, which communicate most, and the largest for which the nodes have room. 1 where
    they have room for none. mesh: axes, innermost last. counts: devices of each node."""
    degrees = [degree for _, degree in mesh]
    sizes = [math.prod(degrees[place:]) for place in range(len(degrees) + 1)]
    room = (size for size in sizes if sum(n // size for n in counts) * size >= sizes[0])
    return next(room, 1)


def ranks_of_bundle(plan: EnginePlan, engine: str, counts: Sequence[int] = ()) -> int:
    """How many ranks are reserved together, on one node: those of a process, but one rank where the
    ranks of a process are on several nodes. Where a rank has a process of its own and no node has
    room for all, those that share a node. counts: devices of each node."""
    size = 1 if plan.spans_nodes else ranks_of_process(engine, plan)
    is_spread = bool(counts) and plan.placement.num_ranks > max(counts)
    if size == 1 and is_spread and not plan.spans_nodes:
        return together(plan.placement.mesh, counts)
    return size


def nodes_of_ranks(plan: EnginePlan, engine: str, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Rank -> the address of its node, on a cluster of which nothing is taken. Empty where the
    nodes have no room. counts: address -> devices."""
    ranks, size = plan.placement.num_ranks, ranks_of_bundle(plan, engine, list(counts.values()))
    places = [node for node in planned_nodes(counts, ranks // size, size) for _ in range(size)]
    if len(places) < ranks:
        return ()
    ranked = sorted(zip(ranks_at(plan.placement.devices, ranks), places, strict=True))
    return tuple(node for _, node in ranked)


def planned_nodes(counts: Mapping[str, int], bundles: int, size: int) -> list[str]:
    """The node of each of `bundles`, of `size` devices each, on a cluster of which nothing is
    taken: few nodes, those with most devices first, in the order of their addresses. counts:
    address -> devices. Shorter than `bundles` where the nodes have no room."""
    ordered = sorted(counts, key=lambda node: (-counts[node], node))
    return sorted([node for node in ordered for _ in range(counts[node] // size)][:bundles])


def shared_out(nodes: Mapping[int, str], processes: int) -> list[tuple[int, ...]]:
    """The bundles of each of `processes`, equally many, ordered by the node of the first of them.
    Those of one node are kept together where they can be, which the nodes that have most of them
    can best. Of more processes than bundles, equally many have one in common. nodes: bundle -> the
    address of its node."""
    counts = Counter(nodes.values())
    ordered = sorted(nodes, key=lambda bundle: (-counts[nodes[bundle]], nodes[bundle], bundle))
    size, sharing = max(len(ordered) // processes, 1), max(processes // len(ordered), 1)
    shares = [tuple(ordered[first : first + size]) for first in range(0, len(ordered), size)]
    in_order = sorted(shares, key=lambda share: (nodes[share[0]], share))
    return [share for share in in_order for _ in range(sharing)]
