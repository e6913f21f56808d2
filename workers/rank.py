"""Who this process is: its rank, its place in the mesh, its device, its process groups."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from strategies.placement import Placement
from workers.progress import NoRanges, Progress, Ranges
from workers.shared_memory import CAN_SHARE, Exchange, Meeting, Ring

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # torch.distributed has it, but not for mypy


@dataclass(slots=True)
class RankContext:
    """One rank of a placement.

    groups: mesh axis -> process group of the ranks that differ from this one along that axis alone.
    edges: "prev" or "next" -> (group, peer) of the stage before or after; a group of two each, so
    that the traffic of one boundary never waits behind that of another.
    meeting: where ranks on CPUs come to share memory; None where they are not to. exchanges, rings:
    the same groups, in memory that they share, None for one that is not on one host. exchanges: by
    mesh axis. rings: "prev", "next", and "pp", by which the last stage tells all others.
    progress: where an engine may tell how far its run is. ranges: where it names what it does.
    bundles: of the placement group, those with the devices of this replica, in the order of its
    ranks; only where it spans nodes.
    """

    rank: int
    placement: Placement
    device: torch.device
    groups: dict[str, dist.ProcessGroup] = field(default_factory=dict)
    edges: dict[str, tuple[dist.ProcessGroup, int]] = field(default_factory=dict)
    meeting: Meeting | None = None
    exchanges: dict[str, Exchange | None] = field(default_factory=dict)
    rings: dict[str, Ring | None] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    ranges: Ranges = field(default_factory=NoRanges)
    bundles: tuple[int, ...] = ()

    @property
    def coordinates(self) -> dict[str, int]:
        """Mesh axis -> index of this rank along it."""
        return self.placement.coordinates(self.rank)

    def at(self, axis: str) -> int:
        """Index along `axis`, 0 where the mesh has none."""
        return self.coordinates.get(axis, 0)

    @property
    def is_first_stage(self) -> bool:
        """Whether the embedding is here; true without a pipeline."""
        return self.at("pp") == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the head is here; true without a pipeline."""
        return self.at("pp") == self.placement.degree("pp") - 1

    @property
    def most_ahead(self) -> int:
        """Steps that a pipeline stage may be ahead of the ones behind it: enough for none to wait
        for work."""
        return 2 * self.placement.degree("pp")

    def barrier(self) -> None:
        """Wait for every rank; not counted as communication of the layout."""
        if self.placement.num_ranks > 1:
            with self.progress.waiting():
                dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def smallest(self, value: int) -> int:
        """The smallest of the values of all ranks; not counted as communication of the layout."""
        if self.placement.num_ranks == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared.item())

    def keep_largest(self, x: torch.Tensor, axis: str) -> None:
        """Set each element of `x` to the largest that any rank along `axis` has; not counted as
        communication of the layout."""
        if axis in self.groups and self.placement.degree(axis) > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MAX, group=self.groups[axis])

    def close(self) -> None:
        """Leave the process groups and the shared memory, if there are any."""
        self.exchanges.clear()
        self.rings.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def connect(
    rank: int,
    placement: Placement,
    device: torch.device,
    store: Store | None,
    timeout_s: float,
    allreduce: str | None = None,
    overlap: str | None = None,
) -> RankContext:
    """Join the other ranks over `store` (None for a process that is alone) and make the groups of
    the mesh. timeout_s: of every collective. allreduce, overlap: see `Switches`."""
    context = RankContext(rank, placement, device)
    if placement.num_ranks == 1 or store is None:
        return context
    timeout = datetime.timedelta(seconds=timeout_s)
    on_gpu = device.type == "cuda"
    if CAN_SHARE and not on_gpu and allreduce != "gloo":
        context.meeting = Meeting(store, rank, timeout_s)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=placement.num_ranks,
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    _make_groups(context, timeout, on_gpu and overlap == "on")
    if context.meeting is not None:
        _share_memory(context, context.meeting)
    return context


def _make_groups(context: RankContext, timeout: datetime.timedelta, overlaps: bool) -> None:
    """Every rank makes every group in the same order, as torch.distributed asks. overlaps: sums
    over tp go on beside other kernels, which fill the GPU: they come before those that wait."""
    rank, placement = context.rank, context.placement
    for axis, _ in placement.mesh:
        for ranks in placement.groups(axis):
            first = _at_high_priority(timeout) if overlaps and axis == "tp" else None
            group = dist.new_group(list(ranks), timeout=timeout, pg_options=first)
            if rank in ranks:
                context.groups[axis] = group
    for source, target in _boundaries(placement):
        group = dist.new_group([source, target], timeout=timeout)
        if rank == source:
            context.edges["next"] = (group, target)
        if rank == target:
            context.edges["prev"] = (group, source)


def _at_high_priority(timeout: datetime.timedelta) -> dist.ProcessGroupNCCL.Options:
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options._timeout = timeout  # else torch warns that it is overridden
    return options


def _share_memory(context: RankContext, meeting: Meeting) -> None:
    """Every rank goes through its groups in the same order, so that none waits for one that waits
    for it."""
    rank, placement = context.rank, context.placement
    for axis in (axis for axis, _ in placement.mesh if axis != "dp"):  # replicas exchange nothing
        ranks = placement.group(axis, rank)
        if axis == "pp":
            context.rings[axis] = meeting.ring(f"tokens from {ranks[-1]}", ranks, ranks[-1])
        else:
            context.exchanges[axis] = meeting.exchange(f"{axis} of {ranks[0]}", ranks)
    for boundary in _boundaries(placement):
        if rank in boundary:
            side = "next" if rank == boundary[0] else "prev"
            name = "from {} to {}".format(*boundary)
            context.rings[side] = meeting.ring(name, boundary, boundary[0])


def _boundaries(placement: Placement) -> Iterator[tuple[int, int]]:
    """(rank, rank of the next stage) of every pipeline."""
    if placement.degree("pp") > 1:
        for ranks in placement.groups("pp"):
            yield from itertools.pairwise(ranks)
