"""The stages of a rank as torch's pipelining takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from strategies.placement import Placement, Split
from strategies.training import micro_batches
from workers.engines.training.observing import part
from workers.messages import EnginePlan

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B}


class _Stage(PipelineStage):
    """A stage whose backward passes are named for a profile, as its forward passes are by what it
    calls."""

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        """Take a micro-batch back."""
        with part("backward"):
            super().backward_one_chunk(*args, **kwargs)


def schedule_of(
    plan: EnginePlan,
    rank: int,
    modules: Sequence[nn.Module],
    group: dist.ProcessGroup,
    device: torch.device,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Any:
    """torch's schedule of a rank. modules: to call, of each of its stages. group: of the
    pipeline."""
    assert plan.training is not None, "the plan trains"
    placement, asked = plan.placement, plan.training
    mine = placement.stages_of(rank)
    numbers = [i for i, one in enumerate(placement.stages) if one in mine]
    stages = [
        _stage(plan, rank, number, module, group, device)
        for number, module in zip(numbers, modules, strict=True)
    ]
    given: Any = stages if asked.schedule == "interleaved" else stages[0]
    kind: Any = SCHEDULES[asked.schedule]
    return kind(given, micro_batches(placement, asked), loss_fn=loss, scale_grads=False)


def _stage(
    plan: EnginePlan,
    rank: int,
    number: int,
    module: nn.Module,
    group: dist.ProcessGroup,
    device: torch.device,
) -> PipelineStage:
    assert plan.training is not None, "the plan trains"
    asked, dtype, stages = plan.training, getattr(torch, plan.dtype), plan.placement.stages
    batch = (asked.micro_batch_size, asked.seq_len)
    between = (batch[0], batch[1] // plan.placement.degree("tp"), plan.model.hidden_size)
    hidden = torch.empty(between, dtype=dtype, device="meta", requires_grad=True)
    tokens = torch.empty(batch, dtype=torch.int64, device="meta")
    logits = torch.empty((*batch, len(columns_of(plan, rank))), dtype=dtype, device="meta")
    return _Stage(
        module,
        number,
        len(stages),
        device,
        input_args=tokens if stages[number].embed else hidden,
        output_args=logits if stages[number].head else hidden,
        group=group,
    )


def columns_of(plan: EnginePlan, rank: int) -> range:
    """The part of the vocabulary whose logits a rank computes. FSDP2 keeps less of it, and gathers
    it; over tp, DTensor cuts it in chunks, where `Placement.shard` shares out what is left over."""
    over_tp, placement = Split("tp", 0, chunked=True), plan.placement
    at = placement.coordinates(rank).get("tp", 0)
    return range(*over_tp.bounds(plan.model.vocab_size, at, placement.degree("tp")))


def ends_of(placement: Placement, rank: int, timeout: timedelta) -> dist.ProcessGroup | None:
    """The group of the first and the last stage of a rank's pipeline; None where it has neither
    or both. Every rank makes every group."""
    first, last = placement.stages[0].pp_rank, placement.stages[-1].pp_rank
    if first == last:
        return None
    mine = None
    for ranks in placement.groups("pp"):
        group = dist.new_group([ranks[first], ranks[last]], timeout=timeout)
        mine = group if rank in (ranks[first], ranks[last]) else mine
    return mine
