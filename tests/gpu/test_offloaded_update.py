"""An update in main memory of parameters that are on a GPU: that of the GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from workers.engines.training.optimizer import Optimizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_offloaded_it_is_that_of_the_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks that share their room: what is on its way is never written over. An update by
    another gradient would be off by 3e-4."""
    monkeypatch.setattr("workers.engines.training.optimizer.UPDATED", 1 << 24)
    torch.manual_seed(0)
    there = nn.ParameterList(
        nn.Parameter(torch.randn(rows, 4096, device="cuda").mul_(1e-2).to(dtype))
        for rows in (4096, 8, 16384, 1, 4096, 3000)
    )
    here = nn.ParameterList(nn.Parameter(one.detach().clone()) for one in there)
    offloaded, plain = Optimizer([there], True, offloads=True), Optimizer([here], True)
    for _ in range(3):
        for one, other in zip(there, here, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        offloaded.step(2.0)
        plain.step(2.0)
    near = {"rtol": 2 * torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 1e-5}
    for _ in range(2):
        for one, other in zip(there, here, strict=True):
            torch.testing.assert_close(one, other, atol=1e-8, **near)
        offloaded.round()
