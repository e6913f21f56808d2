"""DeepSpeed trains replicas, and ZeRO 1 to 3 over them, as one process does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from ranks import Pool
from training_runs import FEW, LOAD, STEPS, alone, check_same, curve, shape_of, training_plan

from workers.messages import TrainingWork
from workers.records import TRAINING_COLLECTIVES

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["tp1", "dp2", "dp2zero1", "dp2zero2", "dp2zero3"])
def test_every_stage_of_zero_has_the_losses_and_norms_of_one_process(
    layout: str, pool: Pool
) -> None:
    plan = training_plan(layout, shape_of("Llama"), None, LOAD)
    (reports,) = pool.serve(plan, TrainingWork(STEPS), engine="deepspeed")
    check_same(curve(reports), alone("Llama"))
    for one in reports:
        assert one.training is not None
        rows = TRAINING_COLLECTIVES.rows(one.training.traffic)
        calls = Counter({row.op: row.calls for row in rows})
        assert bool(calls) == (layout != "tp1")


@pytest.mark.parametrize("layout", ["dp2", "dp2zero1", "dp2zero2", "dp2zero3"])
def test_in_bf16_updates_are_of_float32(layout: str, pool: Pool) -> None:
    shape, load = shape_of("Llama"), replace(LOAD, precision="bf16")
    plan = training_plan(layout, shape, None, load, dtype="bfloat16")
    (reports,) = pool.serve(plan, TrainingWork(FEW), engine="deepspeed")
    check_same(curve(reports), alone("Llama"), 0.05)
    share = 2 if "zero" in layout else 1
    weights = 2 * sum(
        rows * columns
        for _, (rows, *rest) in shape.parameters()
        for columns in [rest[0] if rest else 1]
    )
    for one in reports:
        assert one.training is not None
        assert one.training.optimizer_bytes >= 6 * weights // share
