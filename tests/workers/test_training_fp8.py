"""Matrix products of training in FP8, rounded to it on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ranks import Pool
from training_runs import FEW, LOAD, alone, check_same, curve, shape_of, training_plan

from strategies import TrainingLoad
from workers.messages import TrainingWork

pytest.importorskip("torchao")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["tp1", "fsdp2", "pp2"])
def test_in_fp8_losses_are_those_of_bf16_but_for_rounding(layout: str, pool: Pool) -> None:
    shape, curves = shape_of("Llama"), []
    for precision in ("bf16", "fp8"):
        load: TrainingLoad = replace(LOAD, precision=precision)
        plan = training_plan(layout, shape, None, load, dtype=load.dtype)
        curves.append(curve(pool.serve(plan, TrainingWork(FEW))[0]))
    mixed, eight = curves
    assert [one.loss for one in eight] != [one.loss for one in mixed]
    check_same(eight, alone("Llama"), 0.2)


def test_layers_are_in_fp8_and_the_head_is_not() -> None:

    from workers.engines.training.fp8 import use_fp8
    from workers.engines.training.model import stages_of

    plan = training_plan("tp1", shape_of("Llama"), None)
    (stage,) = stages_of(plan, 0)
    use_fp8(stage, emulate=True)
    kinds = {
        name.rpartition(".")[2]: type(module).__name__
        for name, module in stage.named_modules()
        if "Linear" in type(module).__name__
    }
    assert kinds.pop("lm_head") == "Linear"
    assert set(kinds.values()) == {"Float8Linear"}
