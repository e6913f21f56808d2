"""The matrices of a layer, each with the kernels that make its inputs and multiply by it: in the
dtype of the model, or in FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from workers.engines.native.kernels import Kernels
from workers.engines.native.kernels.fp8 import Fp8, Fp8Kernels, Fp8Weight

Input = TypeVar("Input")
Read = TypeVar("Read")


class Matrix(Protocol, Generic[Input]):
    """A matrix of N output channels and K inputs. Input: what it multiplies, of [T, K] values."""

    def normed(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float
    ) -> tuple[Input, Tensor]:
        """The norm of the sum of x and the residual, as this matrix reads it, and the sum itself:
        [T, K] each. Before the first layer there is no residual yet."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Input:
        """silu(gate) x up of [T, 2 K], as this matrix reads it."""
        ...

    def input(self, x: Tensor) -> Input:
        """[T, K], as this matrix reads it."""
        ...

    def times(self, x: Input, bias: Tensor | None = None) -> Tensor:
        """x matrix^T + bias -> [T, N]."""
        ...

    def gated(self, x: Input, reader: Matrix[Read]) -> Read:
        """silu(gate) x up of what this matrix makes, the gate first, as the `reader` reads it."""
        ...

    @property
    def outputs(self) -> int:
        """N."""
        ...

    @property
    def bytes(self) -> int:
        """That it takes."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """In the dtype of the model. weight: [N, K]."""

    weight: Tensor
    kernels: Kernels

    def normed(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Matrix`."""
        small = self.kernels.pointwise
        if residual is None:
            return small.rms_norm(x, norm, eps), x
        return small.add_rms_norm(x, residual, norm, eps), residual

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Matrix`."""
        return self.kernels.pointwise.silu_mul(gate_up)

    def input(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Matrix`."""
        out: Tensor = self.kernels.linear(x, self.weight, bias)
        return out

    def gated(self, x: Tensor, reader: Matrix[Read]) -> Read:
        """See `Matrix`."""
        if isinstance(reader, Plain):
            return reader.input(self.kernels.gated(x, self.weight))
        return reader.silu_mul(self.times(x))

    @property
    def outputs(self) -> int:
        """N."""
        return self.weight.shape[0]

    @property
    def bytes(self) -> int:
        """Of the weight."""
        return self.weight.nbytes


@dataclass(frozen=True, slots=True)
class InFp8:
    """In FP8, and so are its inputs. dtype: of what it makes."""

    weight: Fp8Weight
    kernels: Fp8Kernels
    dtype: torch.dtype

    def normed(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float
    ) -> tuple[Fp8, Tensor]:
        """See `Matrix`."""
        if residual is None:
            return self.kernels.rms_norm(x, norm, eps, self.weight), x
        return self.kernels.add_rms_norm(x, residual, norm, eps, self.weight), residual

    def silu_mul(self, gate_up: Tensor) -> Fp8:
        """See `Matrix`."""
        return self.kernels.silu_mul(gate_up, self.weight)

    def input(self, x: Tensor) -> Fp8:
        """x, quantised."""
        return self.kernels.quantize(x, self.weight)

    def times(self, x: Fp8, bias: Tensor | None = None) -> Tensor:
        """See `Matrix`."""
        return self.kernels.linear(x, self.weight, bias, self.dtype)

    def gated(self, x: Fp8, reader: Matrix[Read]) -> Read:
        """See `Matrix`."""
        return reader.silu_mul(self.times(x))

    @property
    def outputs(self) -> int:
        """N."""
        return self.weight.values.shape[0]

    @property
    def bytes(self) -> int:
        """Of the weight, its scales included."""
        return self.weight.bytes
