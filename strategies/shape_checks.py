"""Whether the numbers of a config can be those of a model. One that cannot is named here, before it
ends as a division by zero or as text without meaning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from strategies.errors import LayoutError

# Field of a ModelShape -> its name in a config.json, and the least and the greatest value. No model
# is near the upper ends: they are there for a typing error, which would fill the memory.
WHOLE: Mapping[str, tuple[str, int, int]] = {
    "hidden_size": ("hidden_size", 1, 2**20),
    "num_layers": ("num_hidden_layers", 1, 10_000),
    "num_heads": ("num_attention_heads", 1, 2**16),
    "num_kv_heads": ("num_key_value_heads", 1, 2**16),
    "head_dim": ("head_dim", 2, 2**16),
    "intermediate_size": ("intermediate_size", 1, 2**24),
    "vocab_size": ("vocab_size", 1, 2**24),  # tokens are compared as float32, exact up to here
    "max_positions": ("max_position_embeddings", 1, 2**31),
}


def validate(shape: Any) -> None:
    """Raise LayoutError with the first number of a ModelShape that no model can have: a size out of
    range, heads that do not divide, an odd head_dim, a norm or a rotary base that is not finite."""
    wrong = next(_mistakes(shape), None)
    if wrong is not None:
        raise LayoutError(f"{shape.name}: {wrong}")


def _mistakes(shape: Any) -> Iterator[str]:
    for field, (name, least, most) in WHOLE.items():
        value = getattr(shape, field)
        if not least <= value <= most:
            yield f"{name} is {_short(value)}; it must be from {least} to {most}"
    yield from _heads(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    eps, theta = shape.norm_eps, shape.rope_theta
    if not 0 <= eps < 1:
        yield f"rms_norm_eps is {eps}; it must be a number from 0 to below 1"
    if not 0 < theta < math.inf:
        yield f"rope_theta is {theta}; it must be a finite number above 0"
    yield from _scaling(dict(shape.rope_scaling))


def _heads(heads: int, kv_heads: int, dim: int) -> Iterator[str]:
    if heads % kv_heads:
        yield (
            f"num_attention_heads is {heads} and num_key_value_heads {kv_heads}; the first must be "
            "a multiple of the second"
        )
    if dim % 2:
        yield f"head_dim is {dim}; it must be even, since rotary positions turn pairs of values"


def _scaling(scaling: Mapping[str, float | str]) -> Iterator[str]:
    """Mistakes in the numbers of a rotary scaling, under their names in a config.json."""
    numbers = {key: value for key, value in scaling.items() if isinstance(value, (int, float))}
    for key, value in numbers.items():
        if not math.isfinite(value):
            yield f"{key} of the rope scaling is {value}; it must be a finite number"
        elif value <= 0 and key in ("factor", "original_max_position_embeddings"):
            yield f"{key} of the rope scaling is {value}; it must be above 0"
    low, high = numbers.get("low_freq_factor"), numbers.get("high_freq_factor")
    if low is not None and high is not None and not 0 < low < high:
        yield (
            f"the rope scaling goes from low_freq_factor {low} to high_freq_factor {high}; both "
            "must be above 0, and the second greater"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"
