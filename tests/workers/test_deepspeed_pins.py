"""What DeepSpeed has in main memory is pinned where it lies."""

from __future__ import annotations

import pytest
import torch

from workers.engines import deepspeed_pins
from workers.engines.deepspeed_pins import LEAST, Pins

pytest.importorskip("deepspeed")


MOST = LEAST + 2**24  # bytes; the CUDA of these tests pins no tensor that is larger
NO_MEMORY, NOT_REGISTERED = 2, 713  # cudaErrorMemoryAllocation, cudaErrorHostMemoryNotRegistered


class Cuda:
    """The calls of CUDA's runtime. error: the last one, which the next kernel would fail with."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.error = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert (address in self.pinned, flags) == (False, 0)
        self.error = NO_MEMORY if size > MOST else 0
        if not self.error:
            self.pinned[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.pinned.pop(address, None) else NOT_REGISTERED

    def check(self, result: int) -> None:
        if result:
            raise RuntimeError(f"CUDA said {result}")

    def launch(self) -> None:
        self.error = 0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(deepspeed_pins, "_cudart", lambda: made)
    monkeypatch.setattr(deepspeed_pins, "_forget_error", made.launch)
    monkeypatch.setattr(torch.cuda, "check_error", made.check)
    return made


@pytest.fixture
def pinned(cuda: Cuda) -> dict[int, int]:
    """Address -> bytes of what CUDA was told to pin and not yet to unpin."""
    return cuda.pinned


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


def test_what_cannot_be_pinned_stays_as_it_is_and_is_told(cuda: Cuda) -> None:
    pins, much, fits = Pins(), torch.ones(MOST // 4 + 1), torch.ones(LEAST // 4)
    assert pins.lacking is None
    assert pins.pin(much) is much
    assert cuda.error == 0  # no kernel that comes after it is blamed
    assert pins.pin(fits) is fits
    assert list(cuda.pinned) == [fits.data_ptr()]
    said = pins.lacking
    assert said == "CUDA pins no 50.3 MB of main memory: CUDA said 2; it is copied more slowly"
    pins.close()
    assert cuda.pinned == {}
    assert pins.lacking is None


def test_what_is_pinned_is_not_pinned_again(pinned: dict[int, int]) -> None:
    pins, tensor = Pins(), torch.ones(LEAST // 4)
    assert pins.pin(pins.pin(tensor)) is tensor
    assert len(pinned) == 1
    pins.close()


def test_memory_stays_while_it_is_pinned_though_its_tensor_gets_another(
    pinned: dict[int, int],
) -> None:
    pins, tensor = Pins(), torch.ones(LEAST // 4)
    pins.pin(tensor)
    tensor.data = torch.empty(0)
    assert torch.ones(LEAST // 4).data_ptr() not in pinned
    pins.close()


def test_all_others_are_unpinned_where_one_cannot_be(cuda: Cuda) -> None:
    from deepspeed.accelerator import get_accelerator

    before, pins = get_accelerator().pin_memory, Pins()
    pins.install()
    first, *_ = [pins.pin(torch.ones(LEAST // 4)) for _ in range(3)]
    del cuda.pinned[first.data_ptr()]
    with pytest.raises(RuntimeError, match="CUDA said 713"):
        pins.close()
    assert cuda.pinned == {}
    assert get_accelerator().pin_memory == before
    pins.close()
