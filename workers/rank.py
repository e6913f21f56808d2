"""Who this process is: its rank, its place in the mesh, its device, its process groups."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from strategies.placement import Placement
from workers.progress import Progress
from workers.ranges import Ranges, Silent


@dataclass(slots=True)
class RankContext:
    """One rank of a placement.

    groups: mesh axis -> process group of the ranks that differ from this one along that axis alone.
    edges: "prev" | "next" -> (group, peer) of the stage before or after; a group of two each, so
    that the traffic of one boundary never waits behind that of another.
    progress: where an engine leaves word of how far its run is; it may as well not. ranges: where
    it says what it is at.
    """

    rank: int
    placement: Placement
    device: torch.device
    groups: dict[str, dist.ProcessGroup] = field(default_factory=dict)
    edges: dict[str, tuple[dist.ProcessGroup, int]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    ranges: Ranges = field(default_factory=Silent)

    @property
    def coordinates(self) -> dict[str, int]:
        return self.placement.coordinates(self.rank)

    def at(self, axis: str) -> int:
        """Index along `axis`, 0 where the mesh has none."""
        return self.coordinates.get(axis, 0)

    @property
    def is_first_stage(self) -> bool:
        return self.at("pp") == 0

    @property
    def is_last_stage(self) -> bool:
        return self.at("pp") == self.placement.degree("pp") - 1

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def connect(
    rank: int,
    placement: Placement,
    device: torch.device,
    store: dist.Store | None,
    timeout_s: float,
) -> RankContext:
    """Join the other ranks over `store` (None for a placement of one) and make the groups of the
    mesh.

    Every rank makes every group in the same order, as torch.distributed asks.
    """
    context = RankContext(rank, placement, device)
    if placement.num_ranks == 1 or store is None:
        return context
    timeout = datetime.timedelta(seconds=timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=placement.num_ranks,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    for axis, _ in placement.mesh:
        for ranks in placement.groups(axis):
            group = dist.new_group(list(ranks), timeout=timeout)
            if rank in ranks:
                context.groups[axis] = group
    for ranks in placement.groups("pp") if placement.degree("pp") > 1 else ():
        for source, target in itertools.pairwise(ranks):
            group = dist.new_group([source, target], timeout=timeout)
            if rank == source:
                context.edges["next"] = (group, target)
            if rank == target:
                context.edges["prev"] = (group, source)
    return context
