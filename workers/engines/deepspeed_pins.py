"""Main memory that is pinned for DeepSpeed where it lies."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from workers.units import format_bytes

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
        self._left: list[tuple[int, str]] = []  # bytes that could not be pinned, and why

    @property
    def lacking(self) -> str | None:
        """How much could not be pinned, and why, as a clause; None where all is."""
        if not self._left:
            return None
        size = format_bytes(sum(size for size, _ in self._left))
        return f"CUDA pins no {size} of main memory: {self._left[0][1]}; it is copied more slowly"

    def install(self) -> None:
        """Have DeepSpeed pin so, until they are closed."""
        from deepspeed.accelerator import get_accelerator

        get_accelerator().pin_memory = self.pin

    def pin(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor, pinned; a copy of one that is small. One that CUDA cannot pin stays as it is:
        DeepSpeed copies it all the same, and waits for that."""
        import torch

        if tensor.nbytes < LEAST:
            return tensor.pin_memory()
        address = tensor.data_ptr()
        if address in self._held:
            return tensor
        try:
            torch.cuda.check_error(int(_cudart().cudaHostRegister(address, tensor.nbytes, 0)))
        except RuntimeError as error:
            self._left.append((tensor.nbytes, str(error)))
            _forget_error()
        else:
            # Its memory, whatever DeepSpeed lets the tensor itself have later.
            self._held[address] = tensor.detach()
        return tensor

    def close(self) -> None:
        """Unpin all, and have DeepSpeed pin as it did. No copy may be under way. Raises
        RuntimeError once all were tried, where one could not be unpinned."""
        import torch
        from deepspeed.accelerator import get_accelerator

        held, self._held, self._left = self._held, {}, []
        vars(get_accelerator()).pop("pin_memory", None)
        for result in [int(_cudart().cudaHostUnregister(address)) for address in held]:
            torch.cuda.check_error(result)


def _forget_error() -> None:
    """Have CUDA forget its last error, for which torch would blame the next kernel."""
    import torch

    with contextlib.suppress(RuntimeError):
        torch.ones((), device="cuda")  # a kernel, whose launch is checked


def _cudart() -> Any:
    import torch

    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
