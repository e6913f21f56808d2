"""Makes the tensors of one rank: of each parameter its own slices alone, in the form that each
phase reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from strategies.memory import window_of
from workers.engines.native.fp8_support import MATRICES
from workers.engines.native.kernels import Kernels
from workers.engines.native.kernels.fp8 import SMALLEST, Fp8Weight, largest_of, made_fp8
from workers.engines.native.kernels.reference import FP8, LARGEST
from workers.engines.native.matrices import InFp8, Matrix, Plain
from workers.messages import EnginePlan
from workers.rank import RankContext
from workers.records import DECODE, PREFILL
from workers.weights import Source, StoredFp8


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights as its rank holds them; queries, keys and values are one matrix, gate and
    up another. window: the newest tokens that its attention sees, None for all."""

    input_norm: Tensor
    qkv: Matrix[Any]
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Matrix[Any]
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Matrix[Any]
    down: Matrix[Any]
    window: int | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of one kind have the same kernels."""
        in_fp8 = [one.in_fp8 for one in (self.qkv, self.output, self.gate_up, self.down)]
        forms = (one and (one.share, one.input_scale is None) for one in in_fp8)
        return (self.window, *forms)


@dataclass(slots=True)
class Loader:
    """Makes the tensors of one rank of a plan. kernels: of its matrices. bytes: of the tensors made
    so far."""

    source: Source
    plan: EnginePlan
    context: RankContext
    kernels: Kernels
    bytes: int = 0
    dtype: torch.dtype = field(init=False)
    _shapes: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = getattr(torch, self.plan.dtype)
        self._shapes = dict(self.plan.model.parameters())

    def __call__(self, *names: str) -> Tensor:
        """The rank's parts of the parameters `names`, one below the other."""
        out = self._plain(names)
        self.bytes += out.nbytes
        return out

    def optional(self, *names: str) -> Tensor | None:
        """The same, or None where this model has no such parameters."""
        return self(*names) if names[0] in self._shapes else None

    def layer(self, index: int) -> dict[str, Layer]:
        """Layer `index` as each phase reads it. What both read alike is held once."""
        at = f"model.layers.{index}."
        attention = at + "self_attn."
        names = {part: [f"{at}{name}.weight" for name in found] for part, found in MATRICES.items()}
        layer = Layer(
            input_norm=self(at + "input_layernorm.weight"),
            qkv_bias=self.optional(*(f"{attention}{p}_proj.bias" for p in "qkv")),
            q_norm=self.optional(attention + "q_norm.weight"),
            k_norm=self.optional(attention + "k_norm.weight"),
            output_bias=self.optional(attention + "o_proj.bias"),
            post_norm=self(at + "post_attention_layernorm.weight"),
            window=window_of(self.plan.model, index),
            **{part: self._matrix(PREFILL, of) for part, of in names.items()},
        )
        if self.plan.precision.is_uniform:
            return {PREFILL: layer, DECODE: layer}
        others = {part: of for part, of in names.items() if self.plan.model.fp8_of(of[0])}
        matrices: dict[str, Any] = {part: self._matrix(DECODE, of) for part, of in others.items()}
        return {PREFILL: layer, DECODE: replace(layer, **matrices)}

    def _matrix(self, phase: str, names: list[str]) -> Matrix[Any]:
        """The matrix of the parameters `names`, in the form that a phase reads."""
        made: Matrix[Any]
        if self.plan.precision.is_fp8(phase) and self.plan.model.fp8_of(names[0]) is not None:
            made = InFp8(self._fp8(names), self.kernels.fp8, self.dtype)
        else:
            made = Plain(self._plain(tuple(names)), self.kernels.pointwise, self.kernels.products)
        self.bytes += made.bytes
        return made

    def _plain(self, names: tuple[str, ...]) -> Tensor:
        boxes = [self._box(name) for name in names]
        rows = [box[0].stop - box[0].start for box in boxes]
        width = tuple(s.stop - s.start for s in boxes[0][1:])
        out = torch.empty((sum(rows), *width), dtype=self.dtype, device=self.context.device)
        for name, box, part in zip(names, boxes, torch.split(out, rows), strict=True):
            self.source.read(name, self._shapes[name], box, part)
        return out

    def _box(self, name: str) -> tuple[slice, ...]:
        return self.plan.placement.shard(name, self._shapes[name], self.context.rank)

    # -- FP8

    def _fp8(self, names: list[str]) -> Fp8Weight:
        """Parts that were stored in FP8 stay as they are. One input is read by all of them, so it
        is quantised by the largest of their stored scales."""
        parts = [self._fp8_part(name) for name in names]
        device, scales = self.context.device, torch.cat([part.scales for part in parts])
        values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(FP8)
        inputs = [part.input_scale for part in parts if part.input_scale is not None]
        stored = torch.tensor([max(inputs)], device=device) if inputs else None
        form = self.plan.model.fp8_of(names[0])
        assert form is not None
        return Fp8Weight(values, scales, form.share(values.shape[1]), stored)

    def _fp8_part(self, name: str) -> StoredFp8:
        stored = self.source.stored_fp8(name, self._box(name))
        if stored is not None:
            return stored.to(self.context.device)
        plain, form = self._plain((name,)), self.plan.model.fp8_of(name)
        assert form is not None
        share = form.share(plain.shape[1])
        largest = largest_of(plain, share)
        if form.block is None and any(cut.dim == 1 for cut in self.plan.placement.splits(name)):
            self.context.keep_largest(largest, "tp")  # so every layout has the scales of whole rows
        scales = largest.clamp(min=SMALLEST) / LARGEST
        return StoredFp8(made_fp8(plain, scales, share), scales, None)
