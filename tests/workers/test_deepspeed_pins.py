"""What DeepSpeed has in main memory is pinned where it lies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workers.engines import deepspeed_pins
from workers.engines.deepspeed_pins import LEAST, Pins

pytest.importorskip("deepspeed")


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Address -> bytes of what CUDA was told to pin and not yet to unpin."""
    found: dict[int, int] = {}

    def register(address: int, size: int, flags: int) -> int:
        assert (address in found, flags) == (False, 0)
        found[address] = size
        return 0

    def unregister(address: int) -> int:
        return 0 if found.pop(address, None) else 1

    def check(result: int) -> None:
        assert result == 0

    cuda = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister)
    monkeypatch.setattr(deepspeed_pins, "_cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    return found


def test_no_byte_more_is_pinned_than_there_is_and_none_is_copied(pinned: dict[int, int]) -> None:
    size, pins = LEAST // 4 + 1, Pins()
    tensor = torch.ones(size)
    assert pins.pin(tensor, make_copy=False) is tensor
    assert pinned == {tensor.data_ptr(): 4 * size}
    pins.close()
    assert pinned == {}
    pins.close()


def test_what_is_pinned_stays_until_it_is_unpinned(pinned: dict[int, int]) -> None:
    pins = Pins()
    addresses = {pins.pin(torch.ones(LEAST // 4)).data_ptr() for _ in range(2)}
    assert set(pinned) == addresses
    assert len(addresses) == 2  # the first was not freed before the second was made
    pins.close()


def test_deepspeed_pins_so_until_they_are_closed(pinned: dict[int, int]) -> None:
    from deepspeed.accelerator import get_accelerator

    before, pins, tensor = get_accelerator().pin_memory, Pins(), torch.ones(LEAST // 4)
    pins.install()
    assert get_accelerator().pin_memory(tensor) is tensor
    assert len(pinned) == 1
    pins.close()
    assert get_accelerator().pin_memory == before
