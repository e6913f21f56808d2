"""The matrices of a layer, each with the kernels that make its inputs and multiply by it: in the
dtype of the model, or in FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from workers.engines.native.kernels import Pointwise, Products
from workers.engines.native.kernels.fp8 import Fp8, Fp8Kernels, Fp8Weight
from workers.engines.native.kernels.reference import Outbox, Rope

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

    def gated(self, x: Input, reads: Matrix[Read]) -> Read | None:
        """silu(gate) x up of `times`, [T, N / 2], as `reads` reads it, where it is made with the
        product; else None."""
        ...

    def queries(self, x: Input, bias: Tensor | None, rope: Rope) -> Tensor | None:
        """`Pointwise.rope_and_cache` of `times`, where it is made with the product; else None."""
        ...

    def handed(self, x: Input, to: Outbox) -> bool:
        """Whether `times`, without a bias, goes `to` the ranks that sum it."""
        ...

    @property
    def in_fp8(self) -> Fp8Weight | None:
        """The matrix, where its inputs are quantised for it."""
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
    kernels: Pointwise
    products: Products

    def normed(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Matrix`."""
        if residual is None:
            return self.kernels.rms_norm(x, norm, eps), x
        return self.kernels.add_rms_norm(x, residual, norm, eps), residual

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Matrix`."""
        return self.kernels.silu_mul(gate_up)

    def input(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Matrix`."""
        return self.products.linear(x, self.weight, bias)

    def gated(self, x: Tensor, reads: Matrix[Read]) -> Read | None:
        """See `Matrix`."""
        made = self.products.gated(x, self.weight)
        return None if made is None else reads.input(made)

    def queries(self, x: Tensor, bias: Tensor | None, rope: Rope) -> Tensor | None:
        """See `Matrix`."""
        return self.products.queries(x, self.weight, bias, rope)

    def handed(self, x: Tensor, to: Outbox) -> bool:
        """See `Matrix`."""
        return self.products.handed(x, self.weight, to)

    @property
    def in_fp8(self) -> None:
        """See `Matrix`."""
        return None

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

    def gated(self, x: Fp8, reads: Matrix[Any]) -> Any:
        """See `Matrix`."""
        return self.kernels.gated(x, self.weight, self.dtype, reads.in_fp8)

    def queries(self, x: Fp8, bias: Tensor | None, rope: Rope) -> Tensor | None:
        """See `Matrix`."""
        return self.kernels.queries(x, self.weight, bias, self.dtype, rope)

    def handed(self, x: Fp8, to: Outbox) -> bool:
        """See `Matrix`."""
        return self.kernels.handed(x, self.weight, self.dtype, to)

    @property
    def in_fp8(self) -> Fp8Weight:
        """See `Matrix`."""
        return self.weight

    @property
    def outputs(self) -> int:
        """N."""
        return self.weight.values.shape[0]

    @property
    def bytes(self) -> int:
        """Of the weight, its scales included."""
        return self.weight.bytes


def queries(
    qkv: Matrix[Any], x: Any, bias: Tensor | None, rope: Rope, kernels: Pointwise
) -> Tensor:
    """`Pointwise.rope_and_cache` of x qkv^T + bias."""
    made = qkv.queries(x, bias, rope)
    return kernels.rope_and_cache(qkv.times(x, bias), *rope) if made is None else made


def gated(gate_up: Matrix[Any], x: Any, down: Matrix[Read]) -> Read:
    """silu(gate) x up of x gate_up^T, as `down` reads it."""
    made = gate_up.gated(x, down)
    return down.silu_mul(gate_up.times(x)) if made is None else made
