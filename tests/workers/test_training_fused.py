"""Compiled layers in several ranks: what torch traces of them, run without the compiler of kernels,
which takes minutes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ranks import forking
from training_runs import FEW, alone, load_of, shape_of, training_plan

from strategies import TrainingLoad
from strategies.training import training_traffic

RANKS = 2
Told = tuple[Any, int, dict[tuple[str, str], int]]


def train(rank: int, store: str, layout: str, load: TrainingLoad, tell: Any) -> None:
    """Take a few steps as one of two ranks; tell the losses, the norms, how many graphs torch
    compiled and the bytes that one more step communicates."""
    import torch
    import torch.distributed as dist
    from torch._dynamo.utils import counters

    from workers.engines.training.batches import batches
    from workers.engines.training.counting import Counting
    from workers.engines.training.trainer import Trainer
    from workers.messages import Switches, TrainingWork

    compiles: Callable[..., Any] = torch.compile
    torch.compile = functools.partial(compiles, backend="aot_eager", fullgraph=True)  # type: ignore[assignment]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    plan = training_plan(layout, shape_of("Llama"), None, load, switches=Switches(fusion="on"))
    trainer = Trainer(rank, plan, torch.device("cpu"))
    trainer.reset()
    data = batches(plan, TrainingWork(FEW), trainer.replica, range(FEW))
    found = [tuple(trainer.step(tokens)) for tokens in data]
    graphs = counters["stats"]["unique_graphs"]
    counting = Counting(plan.placement, rank)
    trainer.step(next(batches(plan, TrainingWork(1), trainer.replica, range(1))), counting)
    sent = {(one.op, one.axis): one.bytes for one in counting.rows(rank)}
    tell.send((found, graphs, sent))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Told]:
    """(layout, what is recomputed) -> what the first of two ranks tells of a run, made once."""

    @functools.cache
    def run(layout: str, mode: Any) -> Told:
        context, store = forking(), tmp_path_factory.mktemp("trained") / "store"
        load = replace(load_of(layout), activation_checkpointing=mode)
        ours, theirs = zip(*(context.Pipe() for _ in range(RANKS)), strict=True)
        ranks = [
            context.Process(target=train, args=(rank, str(store), layout, load, theirs[rank]))
            for rank in range(RANKS)
        ]
        for one, end in zip(ranks, theirs, strict=True):
            one.start()
            end.close()
        told: list[Told] = [end.recv() for end in ours]
        for one in ranks:
            one.join()
        assert told[0][0] == told[1][0]
        return told[0]

    return run


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("layout", "mode"), [("tp2", "off"), ("tp2", "full"), ("fsdp2", "selective"), ("pp2", "full")]
)
def test_compiled_layers_that_are_cut_change_no_loss(
    layout: str, mode: Any, trained: Callable[[str, Any], Told]
) -> None:
    found, _, sent = trained(layout, mode)
    load = replace(load_of(layout), activation_checkpointing=mode, compiles=True)
    plan = training_plan(layout, shape_of("Llama"), None, load)
    counted = training_traffic(plan.placement, plan.model, load, 0)
    assert sent
    assert sent == {(one.op, one.axis): one.bytes for one in counted if (one.op, one.axis) in sent}
    expected = [(one.loss, one.grad_norm) for one in alone("Llama")[:FEW]]
    assert found == [pytest.approx(one, abs=1e-4, rel=1e-4) for one in expected]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("layout", "mode", "graphs"), [("tp2", "full", 1), ("fsdp2", "selective", 2)]
)
def test_layers_are_compiled_once_however_many_there_are(
    layout: str, mode: Any, graphs: int, trained: Callable[[str, Any], Told]
) -> None:
    """Three here. And so is the loss, where the vocabulary is not cut."""
    assert shape_of("Llama").num_layers > graphs
    assert trained(layout, mode)[1] == graphs
