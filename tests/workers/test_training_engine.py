"""Every layout trains as one process does: the same losses, the same norms, whatever is recomputed
or accumulated; and it communicates what its kind of parallelism needs."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import Pool, read_shape
from training_runs import (
    FEW,
    LOAD,
    SOME,
    STEPS,
    alone,
    check_same,
    curve,
    layers_of,
    load_of,
    shape_of,
    training_plan,
)

from strategies import TrainingLoad
from workers.messages import RankReport, TrainingWork
from workers.training_records import TRAINING_COLLECTIVES

LAYOUTS = ["dp2", "fsdp2", "tp2", "pp2", "tp2pp2", "tp2dp2", "tp2fsdp2", "pp2fsdp2", "pp2dp2"]
LAYOUTS += ["dp2fsdp2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def trains(pool: Pool) -> Callable[..., list[RankReport]]:
    """(layout, family, load, steps) -> the reports of a run, which is made once. counts: whether
    they say what was communicated."""

    @functools.cache
    def run(
        layout: str,
        family: str = "Llama",
        load: TrainingLoad = LOAD,
        steps: int = FEW,
        counts: bool = False,
    ) -> list[RankReport]:
        plan = training_plan(layout, shape_of(family, layers_of(load)), None, load)
        (reports,) = pool.serve(plan, TrainingWork(steps), counts=counts)
        return reports

    return run


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_one_process_trains_as_transformers_and_plain_torch_do(
    family: str, trains: Callable[..., list[RankReport]]
) -> None:
    check_same(curve(trains("tp1", family, steps=STEPS)), alone(family))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_losses_and_norms_of_one_process(
    layout: str, trains: Callable[..., list[RankReport]]
) -> None:
    """Each in two micro-batches or more."""
    load = load_of(layout) if layout in ("tp2", "tp2pp2") else LOAD
    check_same(curve(trains(layout, load=load, steps=SOME)), alone("Llama"))


@pytest.mark.parametrize(
    ("layout", "family"), [("tp2pp2", "Mistral"), ("tp2dp2", "Qwen3"), ("tp2", "Qwen2")]
)
def test_tied_heads_uneven_vocabularies_biases_and_norms_of_heads_train_alike(
    layout: str, family: str, trains: Callable[..., list[RankReport]]
) -> None:
    check_same(curve(trains(layout, family, load_of(layout))), alone(family))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_a_schedule_changes_no_loss(schedule: Any, trains: Callable[..., list[RankReport]]) -> None:
    load = replace(LOAD, schedule=schedule)
    check_same(curve(trains("pp2", load=load)), alone("Llama", layers_of(load)))


@pytest.mark.parametrize(
    ("layout", "micro_batch_size"), [("tp1", 8), ("dp2", 1), ("fsdp2", 1), ("fsdp2", 4)]
)
def test_a_batch_in_pieces_trains_as_the_whole_one(
    layout: str, micro_batch_size: int, trains: Callable[..., list[RankReport]]
) -> None:
    load = replace(LOAD, micro_batch_size=micro_batch_size)
    check_same(curve(trains(layout, load=load)), alone("Llama"))


@pytest.mark.parametrize(
    ("layout", "mode"),
    [("fsdp2", "full"), ("tp2", "selective"), ("tp1", "cpu-offload"), ("pp2", "full")],
)
def test_what_is_not_kept_changes_no_loss(
    mode: Any, layout: str, trains: Callable[..., list[RankReport]]
) -> None:
    load = replace(load_of(layout), activation_checkpointing=mode)
    check_same(curve(trains(layout, load=load)), alone("Llama"))


@pytest.mark.parametrize(
    ("layout", "offload"),
    [("tp1", "optimizer"), ("tp2", "optimizer"), ("fsdp2", "optimizer+params")],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_in_main_memory_changes_no_loss(
    layout: str, offload: Any, precision: Any, pool: Pool
) -> None:
    shape = shape_of("Llama")
    curves = []
    for where in ("none", offload):
        load = replace(load_of(layout), precision=precision, offload=where)
        plan = training_plan(layout, shape, None, load, dtype=load.dtype)
        curves.append(curve(pool.serve(plan, TrainingWork(FEW), counts=False)[0]))
    check_same(*curves, 1e-6)


@pytest.mark.parametrize("layout", ["tp1", "fsdp2", "pp2", "tp2dp2"])
def test_in_fp16_losses_are_scaled_and_steps_that_overflow_are_left_out(
    layout: str, pool: Pool
) -> None:
    shape, load = shape_of("Llama"), replace(load_of(layout), precision="fp16")
    plan = training_plan(layout, shape, None, load, dtype="float16")
    (reports,) = pool.serve(plan, TrainingWork(2 * FEW), counts=False)
    found, expected = curve(reports), alone("Llama")
    left_out = [one for one in found if not math.isfinite(one.grad_norm)]
    taken = [one for one in found if math.isfinite(one.grad_norm)]
    assert len(taken) >= FEW, "the scale has become one without overflow"
    for one, theirs in zip(taken, expected, strict=False):
        if not left_out:
            assert one.loss == pytest.approx(theirs.loss, abs=0.02)
        assert math.isfinite(one.loss)
    assert taken[0].loss == pytest.approx(expected[0].loss, abs=0.02)
    assert taken[0].grad_norm == pytest.approx(
        expected[taken[0].step - len(left_out)].grad_norm, rel=0.5
    )


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
        curve(pool.serve(training_plan(layout, shape, None), work, counts=False)[0])
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
        reports = trains("dp2", load=replace(LOAD, micro_batch_size=size), counts=True)
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
    for one in trains("pp2", counts=True):
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


@pytest.mark.parametrize("layout", ["tp1", "dp2", "fsdp2", "tp2pp2"])
def test_in_bf16_a_parameter_takes_16_bytes_and_its_updates_are_of_float32(
    layout: str, pool: Pool
) -> None:
    shape, load = shape_of("Llama"), replace(load_of(layout), precision="bf16")
    plan = training_plan(layout, shape, None, load, dtype="bfloat16")
    (reports,) = pool.serve(plan, TrainingWork(FEW), counts=False)
    check_same(curve(reports), alone("Llama"), 0.05)
    for one in reports:
        assert one.training is not None
        assert one.training.gradient_bytes == one.training.weight_bytes
        assert one.training.optimizer_bytes >= 6 * one.training.weight_bytes


@pytest.mark.parametrize("layout", ["dp2", "tp2dp2"])
def test_without_collectives_ranks_still_agree_in_a_loss_and_sum_no_gradients(
    layout: str, pool: Pool
) -> None:
    plan = training_plan(layout, shape_of("Llama"), None, load_of(layout), ablation="comm")
    (reports,) = pool.serve(plan, TrainingWork(2))
    first, whole = curve(reports)[0], alone("Llama")[0]
    assert first.grad_norm != pytest.approx(whole.grad_norm, rel=1e-3)
    if layout == "dp2":  # each replica computes a loss by itself
        assert first.loss == pytest.approx(whole.loss, abs=1e-4)
    for one in reports:
        assert one.training is not None
        assert one.training.traffic.num_rows == 0


def test_attention_in_float32_keeps_no_scores_where_heads_share_keys() -> None:
    """No kernel of torch for GPUs has both: so each head of queries gets its own keys, and no
    operator sees fewer heads of keys than of queries."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from workers.engines.training.model import stages_of

    seen: list[tuple[str, int, int]] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            if "attention" in str(func) and "backward" not in str(func):
                seen.append((str(func), args[0].shape[1], args[1].shape[1]))
            return func(*args, **(kwargs or {}))

    shape = replace(shape_of("Llama"), num_kv_heads=2)
    plan = training_plan("tp1", shape, None)
    (stage,) = stages_of(plan, 0)
    stage.materialize(torch.device("cpu"))
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter)
    with Watching():
        stage(torch.zeros((1, 16), dtype=torch.int64))
    assert len(seen) == shape.num_layers
    assert all(queries == keys == 4 for _, queries, keys in seen)
    assert not any("math" in name for name, *_ in seen)


def test_threads_of_gloo_give_way_and_the_rank_itself_does_not(pool: Pool) -> None:
    """Other groups of these processes may have threads of before."""
    shape = shape_of("Llama")
    before = pool.call("policies", [()] * 2)
    try:
        built = pool.build(training_plan("tp2", shape, None, load_of("tp2")))
        found = pool.call("policies", [()] * 2)
    finally:
        pool.call("close", [()] * 2)
    assert len(built) == 2
    for old, now in zip(before, found, strict=True):
        new = [now[one] for one in now.keys() - old.keys()]
        assert {how for name, how in new if "gloo" in name} == {os.SCHED_BATCH}
        assert now[0][1] == os.SCHED_OTHER
