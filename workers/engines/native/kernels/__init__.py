"""The small kernels of a decoder step: Triton on a GPU, plain torch elsewhere, one interface for
both.

`reference` holds the plain-torch functions, `fused` the Triton ones, with the same names and
arguments.
"""

from __future__ import annotations

from types import ModuleType

import torch


def kernels_for(device: torch.device) -> ModuleType:
    """The module whose functions run on `device`."""
    if device.type == "cuda":
        from workers.engines.native.kernels import fused

        return fused
    from workers.engines.native.kernels import reference

    return reference
