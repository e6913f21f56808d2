"""Matrix products of training in FP8, by torchao."""

from __future__ import annotations

from typing import Any

from torch import nn

LEAST = 16  # sizes of an FP8 product are multiples of it


def use_fp8(stage: nn.Module, emulate: bool) -> None:
    """Have the linear layers of a stage, its head aside, multiply in FP8, forward and back: e4m3
    with a scale of each tensor, which is worked out anew every time, and e5m2 for gradients
    (Micikevicius et al., arXiv:2209.05433). Weights stay as they are.

    emulate: round to FP8 and multiply in float32, where the device has no FP8.
    """
    # imported here: an optional dependency
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert: Any = convert_to_float8_training
    convert(stage, config=Float8LinearConfig(emulate=emulate), module_filter_fn=_is_fp8)


def _is_fp8(module: nn.Module, name: str) -> bool:
    """Whether a layer is worth it: the head and its loss need more digits."""
    if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
        return False
    return module.in_features % LEAST == 0 and module.out_features % LEAST == 0
