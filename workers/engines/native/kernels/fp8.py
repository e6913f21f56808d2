"""What FP8 kernels take and return, and their plain-torch reference, which also runs on a CPU.

`fused_fp8` has the same functions in Triton. Value = e4m3 x scale, in both operands of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.engines.native.kernels import reference
from workers.engines.native.kernels.reference import FP8, LARGEST, Outbox, Rope, narrowed, widened

CHUNK = 1 << 24  # elements
SMALLEST = 1e-10  # of the largest value of a token: of zeros alone a scale is wanted as well


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A matrix of N output channels and K inputs.

    values: [N, K] e4m3. scales: [ceil(N / share[0]), ceil(K / share[1])] float32; one is of so many
    rows and columns. input_scale: [1] float32, by which inputs are quantised; None: by their own
    largest values, of each `share[1]` columns of a token.
    """

    values: Tensor
    scales: Tensor
    share: tuple[int, int]
    input_scale: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def plain(self, dtype: torch.dtype) -> Tensor:
        """[N, K], the real values."""
        return spread(self.values, self.scales, self.share).to(dtype)


@dataclass(frozen=True, slots=True)
class Fp8:
    """Activations of T tokens. values: [T, K] e4m3. scales: [T, ceil(K / columns)] float32, where
    one is of so many columns of a token."""

    values: Tensor
    scales: Tensor


class Norm(NamedTuple):
    """The RMSNorm of rows [H] behind a sum; see `Pointwise`. weight: [H]. reads: the matrix for
    which it is quantised; None: it is not."""

    weight: Tensor
    eps: float
    reads: Fp8Weight | None = None


class Fp8Kernels(Protocol):
    """The functions of this module and of `fused_fp8`. weight: of the matrix that reads the result,
    which says how it is to be quantised."""

    def quantize(self, x: Tensor, weight: Fp8Weight) -> Fp8:
        """x: [T, K]."""
        ...

    def rms_norm(self, x: Tensor, norm: Tensor, eps: float, weight: Fp8Weight) -> Fp8:
        """`Pointwise.rms_norm`, quantised."""
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, norm: Tensor, eps: float, weight: Fp8Weight
    ) -> Fp8:
        """`Pointwise.add_rms_norm`, quantised; the residual is written in its own dtype."""
        ...

    def silu_mul(self, gate_up: Tensor, weight: Fp8Weight) -> Fp8:
        """`Pointwise.silu_mul`, quantised."""
        ...

    def linear(self, x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x weight^T + bias, summed in float32 -> [T, N] of `dtype`."""
        ...

    def gated(
        self, x: Fp8, weight: Fp8Weight, dtype: torch.dtype, reads: Fp8Weight | None
    ) -> Fp8 | Tensor | None:
        """`Pointwise.silu_mul` of x weight^T, where it is made with the product, else None.
        reads: the matrix for which it is quantised; None: it is not."""
        ...

    def queries(
        self, x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype, rope: Rope
    ) -> Tensor | None:
        """`Pointwise.rope_and_cache` of `linear`, where it is made with the product, else None."""
        ...

    def handed(self, x: Fp8, weight: Fp8Weight, dtype: torch.dtype, to: Outbox) -> bool:
        """See `Products.handed`. dtype: of what is summed."""
        ...


def quantize(x: Tensor, weight: Fp8Weight) -> Fp8:
    """A scale is the largest value it is of over the largest of e4m3, 448 (Micikevicius et al.,
    arXiv:2209.05433). By a stored scale what is larger is cut off."""
    (tokens, width), columns = x.shape, weight.share[1]
    parts = F.pad(x.float(), (0, -width % columns)).view(tokens, -1, columns)
    if weight.input_scale is None:
        scales = parts.abs().amax(-1).clamp(min=SMALLEST) / LARGEST
    else:
        scales = weight.input_scale.expand(parts.shape[:2]).contiguous()
    values = narrowed(parts / scales[..., None], FP8).view(tokens, -1)
    return Fp8(values[:, :width].contiguous(), scales)


def rms_norm(x: Tensor, norm: Tensor, eps: float, weight: Fp8Weight) -> Fp8:
    """One after the other."""
    return quantize(reference.rms_norm(x, norm, eps), weight)


def add_rms_norm(x: Tensor, residual: Tensor, norm: Tensor, eps: float, weight: Fp8Weight) -> Fp8:
    """One after the other."""
    return quantize(reference.add_rms_norm(x, residual, norm, eps), weight)


def silu_mul(gate_up: Tensor, weight: Fp8Weight) -> Fp8:
    """One after the other."""
    return quantize(reference.silu_mul(gate_up), weight)


def linear(x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A product of real values in float32."""
    inputs = spread(x.values, x.scales, (1, weight.share[1]))
    out = F.linear(inputs, weight.plain(torch.float32)).to(dtype)
    return out if bias is None else out + bias


def gated(x: Fp8, weight: Fp8Weight, dtype: torch.dtype, reads: Fp8Weight | None) -> None:
    """Not made with the product."""


def queries(x: Fp8, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype, rope: Rope) -> None:
    """Not made with the product."""


def handed(x: Fp8, weight: Fp8Weight, dtype: torch.dtype, to: Outbox) -> bool:
    """Not by the product."""
    return False


def made_fp8(plain: Tensor, scales: Tensor, share: tuple[int, int]) -> Tensor:
    """[N, K] e4m3 of real values, by `scales`; see `Fp8Weight`. Some rows at a time, as they are
    float32 meanwhile."""
    out = torch.empty(plain.shape, dtype=FP8, device=plain.device)
    step = max(1, CHUNK // (share[0] * plain.shape[1]))  # rows of scales
    taken = (torch.split(x, step * share[0]) for x in (plain, out))
    for part, made, some in zip(*taken, torch.split(scales, step), strict=True):
        made.copy_(narrowed(part.float() / _of_elements(some, share, part.shape), FP8))
    return out


def largest_of(plain: Tensor, share: tuple[int, int]) -> Tensor:
    """The largest absolute value of each `share` of rows and columns of [N, K] -> [ceil(N /
    share[0]), ceil(K / share[1])] float32."""
    height, width = share
    rows, columns = plain.shape
    padded = F.pad(plain.abs(), (0, -columns % width, 0, -rows % height))
    return padded.view(-(-rows // height), height, -1, width).amax((1, 3)).float()


def spread(values: Tensor, scales: Tensor, share: tuple[int, int]) -> Tensor:
    """The real values, float32. values: [rows, columns] e4m3, of which each `share` has a scale."""
    return widened(values, torch.float32) * _of_elements(scales, share, values.shape)


def _of_elements(scales: Tensor, share: tuple[int, int], shape: torch.Size) -> Tensor:
    """The scale of each element, [rows, columns], or what broadcasts to it."""
    (height, width), (rows, columns) = share, shape
    tall = scales if height == 1 else scales.repeat_interleave(height, 0)[:rows]
    return tall if width >= columns else tall.repeat_interleave(width, 1)[:, :columns]
