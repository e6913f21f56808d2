"""Every layout trains as one process does: the same losses, the same norms, whatever is recomputed
or accumulated; and it communicates what its kind of parallelism needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import BASE, FAMILIES, POOL_SIZE, Pool, read_shape

from strategies import ModelShape, Topology, TrainingLoad, plan_layout
from workers.messages import EnginePlan, RankReport, TrainingWork
from workers.records import TRAINING_COLLECTIVES, TRAINING_STEPS, TrainingStepRow

STEPS, FEW = 20, 4
TOLERANCE = 1e-4
LAYOUTS = ["dp2", "fsdp2", "tp2", "pp2", "tp2pp2", "tp2dp2", "pp2fsdp2", "pp2dp2", "dp2fsdp2"]
LOAD = TrainingLoad(16, 8, 2, precision="fp32")

pytestmark = pytest.mark.slow

Curve = list[TrainingStepRow]


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
    return EnginePlan(**{**fields, **changes})


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


@functools.cache
def shape_of(family: str) -> ModelShape:
    """A small model: 5 layers; with 4 KV heads, so that each rank has whole ones."""
    fields = {**BASE, **FAMILIES[family], "num_key_value_heads": 4}
    fields |= {"architectures": [f"{family}ForCausalLM"], "model_type": family.lower()}
    return ModelShape.from_config(fields, family)


@pytest.fixture(scope="session")
def trains(pool: Pool) -> Callable[..., list[RankReport]]:
    """(layout, family, load, steps) -> the reports of a run."""

    def run(
        layout: str, family: str = "Llama", load: TrainingLoad = LOAD, steps: int = FEW
    ) -> list[RankReport]:
        plan = training_plan(layout, shape_of(family), None, load)
        (reports,) = pool.serve(plan, TrainingWork(steps))
        return reports

    return run


@functools.cache
def alone(family: str) -> Curve:
    """What AdamW of plain torch makes of Transformers' own model: each step on the whole batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from workers.engines.training.batches import random_batches
    from workers.engines.training.optimizer import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY
    from workers.engines.transformers_config import shape_to_config
    from workers.weights import DummyWeights

    shape = shape_of(family)
    model = AutoModelForCausalLM.from_config(shape_to_config(shape))
    for name, one in model.named_parameters():
        box = tuple(slice(0, size) for size in one.shape)
        DummyWeights().read(name, tuple(one.shape), box, one.data)
    adam = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, BETAS, EPSILON, weight_decay=WEIGHT_DECAY
    )
    rows = []
    for step, tokens in enumerate(random_batches(training_plan("tp1", shape, None), 0, STEPS)):
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters()])
        adam.step()
        row = TrainingStepRow(step=step, loss=loss.item(), grad_norm=norm.item(), end_s=0.0)
        rows.append(row)
    return rows


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_one_process_trains_as_transformers_and_plain_torch_do(
    family: str, trains: Callable[..., list[RankReport]]
) -> None:
    check_same(curve(trains("tp1", family, steps=STEPS)), alone(family))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_losses_and_norms_of_one_process(
    layout: str, trains: Callable[..., list[RankReport]]
) -> None:
    check_same(curve(trains(layout, steps=STEPS)), alone("Llama"))


@pytest.mark.parametrize(
    ("layout", "family"), [("tp2pp2", "Mistral"), ("tp2dp2", "Qwen3"), ("tp2", "Qwen2")]
)
def test_tied_heads_uneven_vocabularies_biases_and_norms_of_heads_train_alike(
    layout: str, family: str, trains: Callable[..., list[RankReport]]
) -> None:
    check_same(curve(trains(layout, family)), alone(family))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_a_schedule_changes_no_loss(schedule: Any, trains: Callable[..., list[RankReport]]) -> None:
    check_same(curve(trains("pp2", load=replace(LOAD, schedule=schedule))), alone("Llama"))


@pytest.mark.parametrize("layout", ["tp1", "dp2", "fsdp2"])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_a_batch_in_pieces_trains_as_the_whole_one(
    layout: str, micro_batch_size: int, trains: Callable[..., list[RankReport]]
) -> None:
    load = replace(LOAD, micro_batch_size=micro_batch_size)
    check_same(curve(trains(layout, load=load)), alone("Llama"))


@pytest.mark.parametrize("mode", ["full", "selective", "cpu-offload"])
@pytest.mark.parametrize("layout", ["tp1", "fsdp2", "tp2"])
def test_what_is_not_kept_changes_no_loss(
    mode: Any, layout: str, trains: Callable[..., list[RankReport]]
) -> None:
    load = replace(LOAD, activation_checkpointing=mode)
    check_same(curve(trains(layout, load=load)), alone("Llama"))


def test_runs_of_one_start_are_the_same_run_again(
    pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    """From a checkpoint, which each run begins with."""
    folder = checkpoint("Llama")
    plan = training_plan("fsdp2", read_shape(folder), folder)
    first, second = pool.serve(plan, TrainingWork(3), TrainingWork(3))
    check_same(curve(first), curve(second), 0.0)


def test_text_is_dealt_over_replicas_in_one_order(pool: Pool) -> None:
    import numpy as np

    shape = shape_of("Llama")
    tokens = np.random.default_rng(1).integers(shape.vocab_size, size=(40, 17), dtype=np.int32)
    work = TrainingWork(FEW, tokens)
    curves = [
        curve(pool.serve(training_plan(layout, shape, None), work)[0])
        for layout in ("tp1", "dp2", "pp2fsdp2")
    ]
    check_same(curves[1], curves[0])
    check_same(curves[2], curves[0])
    assert curves[0][0].loss != alone("Llama")[0].loss


def test_gradients_of_replicas_are_summed_once_a_step(
    trains: Callable[..., list[RankReport]],
) -> None:
    """DDP sends the bytes of the gradients once, however many micro-batches there are."""
    weights = sum(
        4 * rows * columns
        for _, (rows, *rest) in shape_of("Llama").parameters()
        for columns in [rest[0] if rest else 1]
    )
    for size in (1, 4):
        reports = trains("dp2", load=replace(LOAD, micro_batch_size=size))
        for one in reports:
            assert one.training is not None
            rows = TRAINING_COLLECTIVES.rows(one.training.traffic)
            sent = sum(row.bytes for row in rows if (row.op, row.axis) == ("all_reduce", "dp"))
            assert sent == weights == one.training.weight_bytes
            assert one.training.gradient_bytes == weights
            assert one.training.optimizer_bytes >= 2 * weights


def test_a_stage_sends_each_micro_batch_once_in_either_direction(
    trains: Callable[..., list[RankReport]],
) -> None:
    hidden = shape_of("Llama").hidden_size
    for one in trains("pp2"):
        assert one.training is not None
        (row,) = TRAINING_COLLECTIVES.rows(one.training.traffic)
        assert (row.op, row.axis, row.calls) == ("send", "pp", 4)
        assert row.bytes == 4 * LOAD.global_batch_size * LOAD.seq_len * hidden


def test_sharded_ranks_keep_their_share_of_everything(
    trains: Callable[..., list[RankReport]],
) -> None:
    (whole,) = trains("tp1")
    assert whole.training is not None
    for one in trains("fsdp2"):
        assert one.training is not None
        assert one.training.weight_bytes < 0.51 * whole.training.weight_bytes
        assert one.training.gradient_bytes == one.training.weight_bytes
        assert one.training.optimizer_bytes < 0.52 * whole.training.optimizer_bytes
