"""What a rank that trains does with its memory, in one process: its collectives move nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from training_runs import LOAD, shape_of, training_plan

from workers.engines.training.batches import batches
from workers.engines.training.trainer import Trainer
from workers.messages import TrainingWork


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A default process group in which this process is the first of two."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("micro_batch_size", [1, 4])
@pytest.mark.usefixtures("two_ranks")
def test_gradients_of_replicas_lie_in_their_buckets_from_the_first_micro_batch_on(
    micro_batch_size: int,
) -> None:
    load = replace(LOAD, micro_batch_size=micro_batch_size)
    plan = training_plan("dp2", shape_of("Llama"), None, load, ablation="comm")
    trainer = Trainer(0, plan, torch.device("cpu"))
    trainer.reset()
    parameters = list(trainer.stages[0].parameters())

    def places() -> list[int]:
        return [one.grad.data_ptr() for one in parameters if one.grad is not None]

    buckets, summed = places(), list[int]()
    assert len(buckets) == len(parameters)
    for one in parameters:
        one.register_post_accumulate_grad_hook(lambda at: summed.append(at.grad.data_ptr()))
    for tokens in batches(plan, TrainingWork(3), 0, 3):
        trainer.step(tokens)
        assert places() == buckets
        assert not any(one.grad.any() for one in parameters if one.grad is not None)
    assert set(summed) == set(buckets)
