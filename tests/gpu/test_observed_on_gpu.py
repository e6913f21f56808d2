"""A step of training on a GPU: its kernels are of the parts in which the host launched them, where
the host is profiled too, and where it notes its ranges by its own clock."""

from __future__ import annotations

import time

import pytest
import torch
from training_runs import shape_of, training_plan

from workers.engines.training.batches import batches
from workers.engines.training.counting import Issued
from workers.engines.training.observed import SeenStep
from workers.engines.training.observing import STARTING, Watch, part
from workers.engines.training.trainer import Trainer
from workers.intervals import length
from workers.messages import TrainingWork

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# Of a step that is told by names of kernels, and of one that is not.
JOURNALS = {"alone": (), "with host": (Issued("all_reduce", "dp"), Issued("all_reduce", "tp"))}


def watch_of(kind: str) -> Watch:
    placement = training_plan("tp1", shape_of("Llama"), None).placement
    return Watch(placement, 0, torch.device("cuda", 0), JOURNALS[kind])


def shares(seen: SeenStep) -> dict[str, float]:
    """Part -> its share of what the step computes."""
    took = {name: length(spans) for name, spans in seen.computing.items()}
    return {name: one / sum(took.values()) for name, one in took.items()}


@pytest.mark.parametrize("kind", JOURNALS)
def test_kernels_are_of_the_part_that_launched_them(kind: str) -> None:
    watch, matrix = watch_of(kind), torch.randn(4096, 4096, device="cuda")
    with watch.watching():
        for number in range(STARTING + watch.kept):
            with watch.step(number):
                for name, times in {"forward": 20, "optimizer": 10}.items():
                    with part(name):
                        for _ in range(times):
                            matrix @ matrix
                        time.sleep(0.01)
                torch.cuda.synchronize()
    (seen,) = watch.steps(time.monotonic() + 60)
    assert set(seen.computing) == {"forward", "optimizer"}
    assert shares(seen)["forward"] == pytest.approx(2 / 3, abs=0.1)
    begins, ends = seen.window
    assert ends - begins > 20_000
    assert all(begins <= at <= ends for spans in seen.computing.values() for at, _ in spans)


def test_kernels_of_autograds_own_thread_are_of_the_backward_pass() -> None:
    """A profile of the GPU alone tells of a trainer's step what one of the host too does."""
    plan = training_plan("tp1", shape_of("Llama"), None, device="cuda")
    trainer = Trainer(0, plan, torch.device("cuda", 0))
    trainer.reset()
    found = {}
    for kind in JOURNALS:
        watch = watch_of(kind)
        steps = range(STARTING + watch.kept)
        with watch.watching():
            for number, tokens in enumerate(batches(plan, TrainingWork(len(steps)), 0, steps)):
                with watch.step(number):
                    trainer.step(tokens)
                    torch.cuda.synchronize()
        (seen,) = watch.steps(time.monotonic() + 60)
        assert not seen.calls
        found[kind] = shares(seen)
    assert set(found["alone"]) == {"forward", "backward", "optimizer", "other"}
    assert found["alone"]["backward"] > found["alone"]["forward"]
    assert found["alone"] == pytest.approx(found["with host"], abs=0.05)
