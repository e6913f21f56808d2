"""What CUDA does not pin for DeepSpeed harms nothing that comes after it."""

from __future__ import annotations

import pytest
import torch

from workers.engines.deepspeed_pins import LEAST, Pins

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")


def test_memory_that_is_pinned_already_stays_so_and_no_kernel_is_blamed() -> None:
    there, first, second = torch.randn(LEAST), Pins(), Pins()
    first.pin(there)
    assert second.pin(there) is there
    assert "CUDA pins no 134.2 MB of main memory" in (second.lacking or "")
    assert torch.ones(8, device="cuda").sum().item() == 8
    second.close()
    assert there.is_pinned()
    first.close()
    assert not there.is_pinned()
