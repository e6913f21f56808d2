"""Main memory that is pinned for DeepSpeed where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 2**25  # bytes; more is mapped for itself, so that no other memory has a part of its pages


class Pins:
    """Tensors that are pinned where they lie, and stay until all are unpinned.

    torch pins a copy instead, of a size that it rounds up to a power of two, and what is freed of
    that stays pinned. For what ZeRO has in main memory there may be no room twice.
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def install(self) -> None:
        """Have DeepSpeed pin so, until they are closed."""
        from deepspeed.accelerator import get_accelerator

        get_accelerator().pin_memory = self.pin

    def pin(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor, pinned; a copy of one that is small. Raises RuntimeError where the memory
        cannot be pinned."""
        import torch

        if tensor.nbytes < LEAST:
            return tensor.pin_memory()
        address = tensor.data_ptr()
        result = _cudart().cudaHostRegister(address, tensor.nbytes, 0)
        torch.cuda.check_error(int(result))
        self._held[address] = tensor
        return tensor

    def close(self) -> None:
        """Unpin all, and have DeepSpeed pin as it did. No copy may be under way."""
        import torch
        from deepspeed.accelerator import get_accelerator

        for address in self._held:
            torch.cuda.check_error(int(_cudart().cudaHostUnregister(address)))
        self._held.clear()
        vars(get_accelerator()).pop("pin_memory", None)


def _cudart() -> Any:
    import torch

    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
