"""A step of training in which the GPU alone is profiled: its kernels are of the parts in which the
host launched them."""

from __future__ import annotations

import time

import pytest
import torch
from training_runs import shape_of, training_plan

from workers.engines.training.observing import STARTING, Watch, part

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("layout", ["dp2zero3", "fsdp2"])
def test_kernels_are_of_the_part_that_launched_them(layout: str) -> None:
    """fsdp2 has the ranges of the profiler, ZeRO-3 those of the host's own clock."""
    device = torch.device("cuda", 0)
    watch = Watch(training_plan(layout, shape_of("Llama"), None).placement, 0, device, ())
    matrix = torch.randn(4096, 4096, device=device)
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
    took = {name: sum(end - at for at, end in spans) for name, spans in seen.computing.items()}
    assert took["forward"] == pytest.approx(2 * took["optimizer"], rel=0.3)
    begins, ends = seen.window
    assert ends - begins > 20_000
    assert all(begins <= at <= ends for spans in seen.computing.values() for at, _ in spans)
