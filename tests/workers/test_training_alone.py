"""What a rank that trains does with its memory, in one process: its collectives move nothing."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from training_runs import FEW, LOAD, alone, shape_of, training_plan

from strategies.training import training_traffic
from workers.engines.training import silent
from workers.engines.training.batches import batches
from workers.engines.training.counting import Counting
from workers.engines.training.pipeline import columns_of
from workers.engines.training.trainer import Trainer
from workers.messages import Switches, TrainingWork


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A default process group in which this process is the first of two."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("layout", "parts"), [("pp2fsdp2", 1), ("pp2dp2", 1), ("tp2pp2", 2)])
def test_the_logits_of_a_pipeline_are_of_the_whole_vocabulary_but_over_tp(
    layout: str, parts: int
) -> None:
    """torch 2.11 refuses a stage that returns another shape than it was told of."""
    plan = training_plan(layout, shape_of("Llama"), None)
    columns = {len(columns_of(plan, rank)) for rank in range(plan.placement.num_ranks)}
    assert columns == {plan.model.vocab_size // parts}


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
    for tokens in batches(plan, TrainingWork(3), 0, range(3)):
        trainer.step(tokens)
        assert places() == buckets
        assert not any(one.grad.any() for one in parameters if one.grad is not None)
    assert set(summed) == set(buckets)


@pytest.mark.parametrize("fusion", ["on", "off"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
        {"activation_checkpointing": "cpu-offload"},
        {"offload": "optimizer"},
    ],
    ids=["plain", "recomputed", "selected", "on-host", "offloaded"],
)
def test_fusion_changes_no_loss(
    fusion: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch traces of a layer, run without the compiler of kernels, which takes minutes."""
    compiled: list[object] = []

    def traced(function: Any) -> Any:
        compiled.append(function)
        return compiles(function, backend="aot_eager", fullgraph=True)

    compiles = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    load = replace(LOAD, **change)
    plan = training_plan("tp1", shape_of("Llama"), None, load, switches=Switches(fusion=fusion))
    trainer = Trainer(0, plan, torch.device("cpu"))
    trainer.reset()
    results = [trainer.step(tokens) for tokens in batches(plan, TrainingWork(FEW), 0, range(FEW))]
    expected = alone("Llama")[:FEW]
    assert [one.loss for one in results] == pytest.approx([one.loss for one in expected], abs=1e-4)
    layers = shape_of("Llama").num_layers
    assert len(compiled) == (layers + 1 if fusion == "on" else 0)  # the loss too


@pytest.mark.parametrize("mode", ["off", "selective", "cpu-offload"])
def test_layers_are_compiled_in_the_step_that_is_counted_too(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[object] = []

    def backend(graph: Any, inputs: object) -> Any:
        def run(*args: Any) -> Any:
            graphs.append(graph)
            return graph(*args)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    load = replace(LOAD, activation_checkpointing=mode)
    plan = training_plan("tp1", shape_of("Llama"), None, load, switches=Switches(fusion="on"))
    trainer = Trainer(0, plan, torch.device("cpu"))
    trainer.reset()
    ran = []
    for step, tokens in enumerate(batches(plan, TrainingWork(4), 0, range(4))):
        trainer.step(tokens, Counting(plan.placement, 0) if step == 1 else nullcontext())
        ran.append(len(graphs))
        graphs.clear()
    assert ran[0] > 0
    assert ran == ran[:1] * 4


@pytest.mark.parametrize("layout", ["dp2", "fsdp2", "tp2"])
@pytest.mark.usefixtures("two_ranks")
def test_without_collectives_a_step_has_the_shapes_and_the_calls_that_it_has_with_them(
    layout: str,
) -> None:
    plan = training_plan(layout, shape_of("Llama"), None, ablation="comm")
    trainer = Trainer(0, plan, torch.device("cpu"))
    trainer.reset()
    counting = Counting(plan.placement, 0)
    first, second, third = batches(plan, TrainingWork(3), trainer.replica, range(3))
    trainer.step(first)
    trainer.step(second)
    trainer.step(third, counting)
    sent = {(one.op, one.axis): one.bytes for one in counting.rows(0)}
    expected = training_traffic(plan.placement, plan.model, LOAD, 0)
    assert sent == {(one.op, one.axis): one.bytes for one in expected if (one.op, one.axis) in sent}
    assert len(sent) == (0 if layout == "dp2" else len(expected))  # a hook stands for those of DDP


@pytest.mark.usefixtures("two_ranks")
def test_without_collectives_what_is_scattered_is_a_ranks_own_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch 2.11 leaves it unwritten, torch 2.13 does not."""
    taken: list[int] = []

    def own_part(output: Any, source: Any, *rest: Any) -> Any:
        taken.append(output.numel())
        return part_of(output, source, *rest)

    part_of, world = silent._own_part, dist.group.WORLD
    assert world is not None
    monkeypatch.setattr(silent, "_own_part", own_part)
    monkeypatch.setattr(silent, "_takes_own_part", lambda _: False)
    kept = silent.reducing_own_parts(world, torch.device("cpu"))
    source, output = torch.arange(4.0), torch.full((2,), torch.nan)
    dist.reduce_scatter_tensor(output, source)
    functional: Any = torch.ops._c10d_functional
    other = functional.reduce_scatter_tensor(source, "sum", 2, world.group_name)
    assert output.tolist() == functional.wait_tensor(other).tolist() == [0.0, 1.0]
    assert taken == [2, 2]
    assert kept is not None
    del kept
    gc.collect()
    dist.reduce_scatter_tensor(output, source)
    assert taken == [2, 2]


@pytest.mark.parametrize("layout", ["tp2", "fsdp2"])
@pytest.mark.usefixtures("two_ranks")
def test_without_collectives_losses_and_gradients_are_numbers_of_a_deep_model_too(
    layout: str,
) -> None:
    """Over tp, gradients of vectors of zeros grow in each norm."""
    plan = training_plan(layout, shape_of("Llama", layers=24), None, ablation="comm")
    trainer = Trainer(0, plan, torch.device("cpu"))
    trainer.reset()
    for tokens in batches(plan, TrainingWork(2), trainer.replica, range(2)):
        result = trainer.step(tokens)
        assert math.isfinite(result.loss)
        assert result.grad_norm < 100
