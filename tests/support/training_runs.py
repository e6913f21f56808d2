"""Small models that are trained: plans, and what plain torch makes of them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import BASE, FAMILIES, POOL_SIZE

from strategies import ModelShape, Topology, TrainingLoad, plan_layout
from workers.messages import EnginePlan, RankReport
from workers.training_records import TRAINING_STEPS, TrainingStepRow

# A step begins with the weights that the one before it left, so an update that is wrong is seen in
# the next. One process takes the most steps, where they cost the least.
STEPS, SOME, FEW = 20, 8, 4
TOLERANCE = 1e-4
LOAD = TrainingLoad(16, 8, 2, precision="fp32")

Curve = list[TrainingStepRow]


def load_of(layout: str) -> TrainingLoad:
    """LOAD, under tp in fewer micro-batches: the many small operations of one take long there."""
    return replace(LOAD, micro_batch_size=4) if "tp2" in layout else LOAD


def layers_of(load: TrainingLoad) -> int:
    """As many as there are stages, and more, where a rank has several."""
    return 5 if load.schedule == "interleaved" else 3


def training_plan(
    layout: str, shape: ModelShape, folder: Path | None, load: TrainingLoad = LOAD, **changes: Any
) -> EnginePlan:
    """A float32 CPU plan that trains under `layout`."""
    placement = plan_layout(layout, shape, load.load, Topology.uniform(POOL_SIZE)).placement
    fields: dict[str, Any] = {
        "model": shape,
        "layout": layout,
        "placement": placement,
        "checkpoint": None if folder is None else str(folder),
        "dtype": "float32",
        "device": "cpu",
        "max_concurrency": load.global_batch_size,
        "max_len": load.seq_len,
        "prefill_tokens": 0,
        "timeout_s": 60.0,
        "training": load,
    }
    plan = EnginePlan(**{**fields, **changes})
    return replace(plan, training=load.with_fusion(plan.switches.fusion, on_gpu=False))


def curve(reports: list[RankReport]) -> Curve:
    """The steps of a run."""
    tables = [one.training.steps for one in reports if one.training and one.training.steps]
    return TRAINING_STEPS.rows(tables[0])


def check_same(found: Curve, expected: Curve, tolerance: float = TOLERANCE) -> None:
    """The same losses and norms, step by step, as far as `found` goes."""
    assert found
    for mine, theirs in zip(found, expected[: len(found)], strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=tolerance)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, abs=tolerance, rel=tolerance)


def step_row(step: int, loss: float, grad_norm: float, end_s: float = 0.0) -> TrainingStepRow:
    """A step of a run that was never stopped."""
    return TrainingStepRow(step=step, loss=loss, grad_norm=grad_norm, end_s=end_s, resumed=False)


@functools.cache
def shape_of(family: str, layers: int = 3) -> ModelShape:
    """A small model: a first layer, a last one and one between; with 4 KV heads, so that each rank
    has whole ones."""
    fields = {**BASE, **FAMILIES[family], "num_key_value_heads": 4, "num_hidden_layers": layers}
    fields |= {"architectures": [f"{family}ForCausalLM"], "model_type": family.lower()}
    return ModelShape.from_config(fields, family)


@functools.cache
def alone(family: str, layers: int = 3) -> Curve:
    """What AdamW of plain torch makes of Transformers' own model: each step on the whole batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from workers.engines.training.batches import random_batches
    from workers.engines.training.optimizer import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY
    from workers.engines.transformers_config import shape_to_config
    from workers.weights import DummyWeights

    shape = shape_of(family, layers)
    model = AutoModelForCausalLM.from_config(shape_to_config(shape))
    for name, one in model.named_parameters():
        box = tuple(slice(0, size) for size in one.shape)
        DummyWeights().read(name, tuple(one.shape), box, one.data)
    adam = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, BETAS, EPSILON, weight_decay=WEIGHT_DECAY
    )
    rows = []
    for step, tokens in enumerate(
        random_batches(training_plan("tp1", shape, None), 0, range(STEPS))
    ):
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters()])
        adam.step()
        rows.append(step_row(step, loss.item(), norm.item()))
    return rows
