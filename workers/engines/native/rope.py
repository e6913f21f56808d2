"""Rotary positions (Su et al., arXiv:2104.09864): plain, and stretched to longer texts as
Transformers' `modeling_rope_utils` does it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.shapes import ModelShape

Scaling = Mapping[str, float | str]


def rotary_table(model: ModelShape, max_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, [max_len, head_dim / 2] float32 each; YaRN's are
    scaled too. Raises ValueError for a rope type that is not run here."""
    frequency, scale = _frequency(model, dict(model.rope_scaling))
    angles = torch.arange(max_len).float()[:, None] * frequency[None, :]
    return angles.cos() * scale, angles.sin() * scale


def _frequency(model: ModelShape, scaling: Scaling) -> tuple[Tensor, float]:
    """Radians a token, [head_dim / 2] float32, and the factor of cosines and sines."""
    plain = 1.0 / _wavelengths(model)
    match scaling.get("rope_type", "default"):
        case (
            "default" | "dynamic"
        ):  # up to the length that the model was made for, dynamic is plain
            return plain, 1.0
        case "linear":
            return plain / float(scaling["factor"]), 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(model, scaling)
        case kind:
            raise ValueError(f"rope type {kind!r} is not run here")


def _wavelengths(model: ModelShape) -> Tensor:
    """Tokens a radian."""
    exponent = torch.arange(0, model.head_dim, 2).float() / model.head_dim
    tokens: Tensor = model.rope_theta**exponent
    return tokens


def _llama3(plain: Tensor, scaling: Scaling) -> Tensor:
    """The long wavelengths stretched (`_compute_llama3_parameters`)."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (float(scaling[name]) for name in names)
    wavelength = 2 * math.pi / plain
    blend = (original / wavelength - low) / (high - low)
    smooth = (1 - blend) * plain / factor + blend * plain
    stretched = torch.where(wavelength > original / low, plain / factor, plain)
    between = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(between, smooth, stretched)


def _yarn(model: ModelShape, scaling: Scaling) -> tuple[Tensor, float]:
    """Frequencies that turn often in the original length stay, those that turn seldom are
    stretched, and between them is a ramp (Peng et al., arXiv:2309.00071;
    `_compute_yarn_parameters`)."""
    original = float(scaling.get("original_max_position_embeddings", model.max_positions))
    factor = float(scaling.get("factor") or model.max_positions / original)
    low, high = _yarn_range(model, scaling, original)
    wavelengths = _wavelengths(model)
    ramp = ((torch.arange(len(wavelengths)).float() - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    frequency = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
    return frequency, _yarn_scale(scaling, factor)


def _yarn_range(model: ModelShape, scaling: Scaling, original: float) -> tuple[float, float]:
    """Where the ramp begins and ends, as indices of frequencies: there a frequency turns
    beta_fast and beta_slow times in the original length."""

    def turning(times: float) -> float:
        logs = math.log(original / (times * 2 * math.pi)) / math.log(model.rope_theta)
        return model.head_dim * logs / 2

    low = turning(float(scaling.get("beta_fast") or 32))
    high = turning(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, model.head_dim - 1)
    return low, high if high != low else high + 0.001


def _yarn_scale(scaling: Scaling, factor: float) -> float:
    """What cosines and sines are multiplied by: as given, else by the paper's formula."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    scale, all_dims = (float(scaling.get(key) or 0) for key in ("mscale", "mscale_all_dim"))
    if scale and all_dims:
        return _magnitude(factor, scale) / _magnitude(factor, all_dims)
    return _magnitude(factor)


def _magnitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
