"""The optimizer of the engine `torch`, beside AdamW of plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import LOAD, shape_of, training_plan

from workers.actor import Worker
from workers.engines.training.optimizer import (
    BETAS,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Optimizer,
)

SCALE = 4.0


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3).to(dtype)


def gradients(step: int, like: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(step + 1)
    return [torch.randn(one.shape).to(one.dtype) for one in like.parameters()]


@pytest.mark.parametrize("keeps", [True, False], ids=["buckets", "free"])
@pytest.mark.parametrize("offloads", [True, False], ids=["offloaded", "on-device"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_or_offloaded_or_in_buckets_an_update_is_that_of_float32(
    dtype: torch.dtype, fused: bool, offloads: bool, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after a step that is left out, and from a state that another one kept. Each parameter is
    a chunk: where they are offloaded, they share the memory in which they are updated."""
    monkeypatch.setattr("workers.engines.training.optimizer.UPDATED", 1)
    mine, whole = layer(dtype), layer(dtype).float()
    adam = torch.optim.AdamW(
        whole.parameters(), LEARNING_RATE, BETAS, EPSILON, weight_decay=WEIGHT_DECAY
    )
    optimizer = Optimizer([mine], fused, keeps, offloads)
    scale = SCALE if dtype == torch.float16 else 1.0
    places = set()
    for step in range(4):
        found = gradients(step, mine)
        for one, theirs, gradient in zip(mine.parameters(), whole.parameters(), found, strict=True):
            theirs.grad = gradient.float() / scale
            if one.grad is None:
                one.grad = gradient
            else:  # as DDP does it
                assert not one.grad.any()
                one.grad += gradient
            places.add(one.grad.data_ptr())
        if step == 1:
            optimizer.drop()
            continue
        adam.step()
        optimizer.step(scale)
        if step == 2:
            kept = {
                parameter: {name: tensor.clone() for name, tensor in tensors.items()}
                for parameter, tensors in optimizer.state().items()
            }
            optimizer.begin_after(2)
            for parameter, tensors in optimizer.state().items():
                for name, tensor in tensors.items():
                    tensor.copy_(kept[parameter][name])
    for one, theirs in zip(mine.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), theirs.detach().to(dtype), rtol=1e-6, atol=1e-7)
        assert (one.grad is not None) == keeps
    assert len(places) == 2 or not keeps


def test_before_the_first_update_there_is_a_state_of_moments_that_are_zero() -> None:
    optimizer = Optimizer([layer(torch.float16)], False, False, False)
    for tensors in optimizer.state().values():
        assert set(tensors) == {"weight", "exp_avg", "exp_avg_sq"}
        assert not tensors["exp_avg"].any()


@pytest.mark.parametrize(
    ("offload", "threads"), [("none", []), ("optimizer", [6]), ("optimizer+params", [6])]
)
def test_an_optimizer_in_main_memory_has_its_ranks_share_of_the_cores(
    offload: Any, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives one thread to a process that takes a GPU and no cores."""
    given: list[int] = []
    monkeypatch.setattr("workers.actor.num_cores", lambda: 13)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    load = replace(LOAD, offload=offload)
    Worker()._device(training_plan("dp2", shape_of("Llama"), None, load, device="cuda"))
    assert given == threads
