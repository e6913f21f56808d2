"""What DeepSpeed keeps in main memory for a GPU is pinned where it lies, and changes no loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_runs import LOAD, shape_of, training_plan

from strategies import ModelShape
from workers.engines.deepspeed_pins import LEAST, Pins
from workers.engines.training.batches import random_batches
from workers.engines.training.deepspeed import Replica
from workers.messages import EnginePlan
from workers.rank import RankContext

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")

STEPS = 3


def test_a_tensor_pinned_where_it_lies_is_copied_while_the_host_goes_on() -> None:
    pins, device = Pins(), torch.device("cuda")
    there = torch.randn(4 * LEAST + 12345)  # 0.5 GB
    assert not there.is_pinned()
    assert pins.pin(there) is there
    assert there.is_pinned()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # some 100 ms
        copy = there.to(device, non_blocking=True)
        assert not stream.query()  # the host did not wait for it
    stream.synchronize()
    assert torch.equal(copy.cpu(), there)
    pins.close()
    assert not there.is_pinned()
    again = Pins()
    again.pin(there)
    again.close()


def shape() -> ModelShape:
    """The small model with a vocabulary whose embedding is pinned where it lies, in BF16 too."""
    small = shape_of("Llama")
    wide = replace(small, vocab_size=2 * LEAST // small.hidden_size)
    assert 2 * wide.vocab_size * wide.hidden_size >= LEAST
    return wide


def plan_of(layout: str, offload: Any, precision: Any) -> EnginePlan:
    """ZeRO over one replica."""
    dtype = "bfloat16" if precision == "bf16" else "float32"
    load = replace(LOAD, offload=offload, precision=precision)
    return training_plan(layout, shape(), None, load, dtype=dtype, device="cuda")


def curve(plan: EnginePlan) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step: of an engine that begins again, and is made anew."""
    replica = Replica(RankContext(0, plan.placement, torch.device("cuda", 0)), plan)
    try:
        for is_made_anew in (False, False, True):
            if is_made_anew:
                replica._drop()
            replica.reset()
            found = [replica.step(one) for one in random_batches(plan, 0, range(STEPS))]
        held = list(replica._pins._held.values())
        assert bool(held) == (plan.training is not None and plan.training.offload != "none")
    finally:
        replica.close()
    assert not any(one.is_pinned() for one in held)
    return [(one.loss, one.grad_norm) for one in found]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("layout", "offload"),
    [
        ("zero1", "optimizer"),
        ("zero2", "optimizer"),
        ("zero3", "optimizer"),
        ("zero3", "optimizer+params"),
    ],
)
def test_what_zero_keeps_in_main_memory_changes_no_loss(
    layout: str, offload: str, precision: str
) -> None:
    plan = plan_of(layout, offload, precision)
    assert plan.training is not None
    on_device = replace(plan, training=replace(plan.training, offload="none"))
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for mine, theirs in zip(curve(plan), curve(on_device), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
