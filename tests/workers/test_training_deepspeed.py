"""DeepSpeed trains replicas, and ZeRO 1 to 3 over them, as one process does."""

from __future__ import annotations

from collections import Counter

import pytest
from ranks import Pool
from training_runs import LOAD, STEPS, alone, check_same, curve, shape_of, training_plan

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
