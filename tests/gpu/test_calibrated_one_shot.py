"""`orchestrator calibrate` measures all-reduces in one shot, on 2 and on 4 GPUs, where there are so
many."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from allreduce import on_each_gpu

from strategies.peer_sums import each_way
from strategies.placement import Placement
from strategies.traffic import ONE_SHOT
from workers.engines.calibration_parts import ON_ONE_DEVICE, parts
from workers.engines.node_collectives import several_ranks
from workers.engines.node_timing import QUICK_SWEEP, Timing
from workers.rank import RankContext

RANKS = [count for count in (2, 4) if count <= torch.cuda.device_count()]
pytestmark = pytest.mark.skipif(not RANKS, reason="needs two GPUs or more")


def measured(rank: int, device: torch.device) -> list[Timing]:
    """The collectives that this rank reports."""
    context = RankContext(rank, Placement().with_axis("tp", dist.get_world_size()), device)
    of_several = [part for part in parts(dist.get_world_size()) if part not in ON_ONE_DEVICE]
    with torch.inference_mode():
        return [one for part in of_several for one in several_ranks(context, QUICK_SWEEP, part)]


@pytest.mark.parametrize("ranks", RANKS)
def test_one_shot_is_measured_by_size_and_group_and_is_ahead_of_nccl(ranks: int) -> None:
    found = [one for of_rank in on_each_gpu(ranks, measured, timeout_s=120) for one in of_rank]
    for size in (2, ranks):
        group, most = tuple(range(size)), dict(each_way(size))[ONE_SHOT]
        in_graph = [one for one in found if (one.group, one.mode) == (group, "graph")]
        nccl, one_shot = (
            {one.bytes: one.time_us or 0.0 for one in in_graph if one.op == op}
            for op in ("all_reduce", ONE_SHOT)
        )
        sizes = [message for message in QUICK_SWEEP.messages if message < most]
        assert list(one_shot) == [*sizes, most]
        assert 0 < one_shot[sizes[0]] < nccl[sizes[0]]
