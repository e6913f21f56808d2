"""Open loops: which requests have arrived. One rank of a replica decides and tells the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from strategies.placement import Placement
from workers.engines.native.scheduler import Scheduler

if TYPE_CHECKING:
    import torch.distributed as dist

    from workers.rank import RankContext


class Arrivals:
    """Keeps the schedulers of a replica's ranks alike where the clock decides.

    The first rank of the replica, which is on the first stage, looks at its clock and broadcasts
    the seconds since the start over a group on the CPU. It does so once before each admission,
    until every request has been let in.

    now: gives the seconds since the start. decides: whether this is that rank. source: its number.
    group: the replica's ranks, None for a replica of one.
    """

    def __init__(
        self, now: Callable[[], float], decides: bool, source: int, group: dist.ProcessGroup | None
    ) -> None:
        self._now, self._decides, self._source, self._group = now, decides, source, group

    def tell(self, scheduler: Scheduler, keep_up: Callable[[], None]) -> None:
        """Tell `scheduler` the time, which says what requests have arrived; where none is being
        served, wait for the next one first.

        keep_up: called on the deciding rank alone, before it looks at the clock. It returns once
        the device is hardly behind the host, so that the decision is made when its step begins.
        """
        if not scheduler.queued:
            return
        import torch
        import torch.distributed as dist

        told = torch.zeros(1, dtype=torch.float64)
        if self._decides:
            keep_up()
            if scheduler.is_idle() and (at := scheduler.next_arrival_s) is not None:
                self._sleep_until(at)
            told[0] = self._now()
        if self._group is not None:
            dist.broadcast(told, self._source, group=self._group)
        scheduler.arrive(float(told))

    def _sleep_until(self, at: float) -> None:
        while (left := at - self._now()) > 0:
            time.sleep(left)


def replica_group(context: RankContext) -> tuple[dist.ProcessGroup | None, int]:
    """A gloo group of the ranks of this rank's replica (None where it is alone), and the rank that
    decides.

    Every rank of the placement calls this at the same time: each makes the groups of all replicas.
    """
    import torch.distributed as dist

    replicas = _replicas(context.placement)
    mine: dist.ProcessGroup | None = None
    for ranks in replicas if len(replicas[0]) > 1 else ():
        group = dist.new_group(ranks, backend="gloo")
        mine = group if context.rank in ranks else mine
    return mine, next(ranks[0] for ranks in replicas if context.rank in ranks)


def _replicas(placement: Placement) -> list[list[int]]:
    """The ranks of each replica, in order; on the first of them sits the first stage."""
    replicas: dict[int, list[int]] = {}
    for rank in range(placement.num_ranks):
        replicas.setdefault(placement.coordinates(rank).get("dp", 0), []).append(rank)
    return list(replicas.values())
