"""One plain decoder for the Llama family (Llama, Mistral, Qwen2, Qwen3): the layers of one rank,
cut as its placement says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers.communicator import Communicator
from workers.engines.native.cache import PagedCache
from workers.weights import Source


class Context(Protocol):
    """What new tokens attend to."""

    def attend(self, kernels: ModuleType, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q: [T, heads, D]; keys, values: one layer's cache -> [T, heads, D]."""
        ...


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """One new token a request. tables: [B, pages] int32; lengths: [B] int32, the new token
    included."""

    tables: Tensor
    lengths: Tensor

    def attend(self, kernels: ModuleType, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out: Tensor = kernels.decode_attention(q, keys, values, self.tables, self.lengths)
        return out


@dataclass(frozen=True, slots=True)
class PrefillContext:
    """Chunks of prompts; see `reference.prefill_attention` for the fields."""

    slots: Tensor
    query_ends: Tensor
    context_ends: Tensor
    longest_query: int
    longest_context: int

    def attend(self, kernels: ModuleType, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out: Tensor = kernels.prefill_attention(
            q,
            keys,
            values,
            self.slots,
            self.query_ends,
            self.context_ends,
            self.longest_query,
            self.longest_context,
        )
        return out


@dataclass(frozen=True, slots=True)
class Batch:
    """The new tokens of one forward pass.

    inputs: [T] int64 token ids on the first stage, [T, hidden] activations on the others.
    positions, slots: [T] int64, place in the sequence and in the cache. rows: [n] int64, which
    tokens are sampled from; None = all.
    """

    inputs: Tensor
    positions: Tensor
    slots: Tensor
    context: Context
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights as its rank holds them; queries, keys and values are one matrix, gate and
    up another."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Loader:
    """Makes the tensors of one rank, each filled with its own slices alone."""

    def __init__(
        self,
        source: Source,
        model: ModelShape,
        placement: Placement,
        rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._source, self._placement, self._rank = source, placement, rank
        self._shapes = dict(model.parameters())
        self._dtype, self._device = dtype, device
        self.bytes = 0

    def __call__(self, *names: str) -> Tensor:
        """The rank's parts of the parameters `names`, one below the other."""
        boxes = [self._placement.shard(name, self._shapes[name], self._rank) for name in names]
        rows = [box[0].stop - box[0].start for box in boxes]
        width = tuple(s.stop - s.start for s in boxes[0][1:])
        out = torch.empty((sum(rows), *width), dtype=self._dtype, device=self._device)
        for name, box, part in zip(names, boxes, out.split(rows), strict=True):
            self._source.read(name, self._shapes[name], box, part)
        self.bytes += out.numel() * out.element_size()
        return out

    def optional(self, *names: str) -> Tensor | None:
        """The same, or None where this model has no such parameters."""
        return self(*names) if names[0] in self._shapes else None

    def layer(self, index: int) -> Layer:
        at = f"model.layers.{index}."
        attention = at + "self_attn."
        return Layer(
            input_norm=self(at + "input_layernorm.weight"),
            qkv=self(*(f"{attention}{p}_proj.weight" for p in "qkv")),
            qkv_bias=self.optional(*(f"{attention}{p}_proj.bias" for p in "qkv")),
            q_norm=self.optional(attention + "q_norm.weight"),
            k_norm=self.optional(attention + "k_norm.weight"),
            output=self(attention + "o_proj.weight"),
            output_bias=self.optional(attention + "o_proj.bias"),
            post_norm=self(at + "post_attention_layernorm.weight"),
            gate_up=self(at + "mlp.gate_proj.weight", at + "mlp.up_proj.weight"),
            down=self(at + "mlp.down_proj.weight"),
        )


class Decoder:
    """The stages of one rank. Where a placement cuts a projection by its rows over tp, the result
    is summed over tp."""

    def __init__(
        self,
        model: ModelShape,
        placement: Placement,
        rank: int,
        communicator: Communicator,
        kernels: ModuleType,
        load: Loader,
        max_len: int,
        device: torch.device,
    ) -> None:
        self._model, self._communicator, self._kernels = model, communicator, kernels
        stages = placement.stages_of(rank)
        self.has_embedding = any(stage.embed for stage in stages)
        self.has_head = any(stage.head for stage in stages)
        self.layers = {index: load.layer(index) for stage in stages for index in stage.layers}
        embed, head = "model.embed_tokens.weight", model.head_name
        self._embedding = load(embed) if self.has_embedding else None
        self._final_norm = load("model.norm.weight") if self.has_head else None
        shared = model.tie_embeddings and self._embedding is not None
        self._head = None if not self.has_head else self._embedding if shared else load(head)
        self._cut = {name: placement.is_split(name, "tp") for name in (embed, head)}
        self._sum_attention = placement.is_split("model.layers.0.self_attn.o_proj.weight", "tp")
        self._sum_mlp = placement.is_split("model.layers.0.mlp.down_proj.weight", "tp")
        shape = (model.vocab_size, model.hidden_size)
        self._first_token = placement.shard(embed, shape, rank)[0].start
        self.first_logit = placement.shard(head, shape, rank)[0].start
        self.head_axis = "tp" if self._cut[head] else None
        self.weight_bytes = load.bytes
        self._cos, self._sin = (t.to(device) for t in rotary_table(model, max_len))

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        """Logits [n, vocabulary shard] on the last stage, activations [T, hidden] on the others."""
        x = self._embed(batch.inputs) if self.has_embedding else batch.inputs
        residual: Tensor | None = None
        for index, layer in self._in_turn():
            if residual is None:
                residual, x = x, self._kernels.rms_norm(x, layer.input_norm, self._model.norm_eps)
            else:
                x = self._kernels.add_rms_norm(x, residual, layer.input_norm, self._model.norm_eps)
            x = self._attention(layer, x, batch, cache.keys[index], cache.values[index])
            x = self._kernels.add_rms_norm(x, residual, layer.post_norm, self._model.norm_eps)
            x = self._mlp(layer, x)
        assert residual is not None, "a stage has at least one layer"
        if not self.has_head:
            return residual.add_(x)
        if batch.rows is not None:
            x, residual = x[batch.rows], residual[batch.rows]
        assert self._final_norm is not None
        assert self._head is not None
        return F.linear(
            self._kernels.add_rms_norm(x, residual, self._final_norm, self._model.norm_eps),
            self._head,
        )

    def _in_turn(self) -> Iterable[tuple[int, Layer]]:
        """Each layer with its index; the next is asked for when one is done."""
        return self.layers.items()

    def _embed(self, tokens: Tensor) -> Tensor:
        table = self._embedding
        assert table is not None
        if not self._cut["model.embed_tokens.weight"]:
            return F.embedding(tokens, table)
        local = tokens - self._first_token
        mine = (local >= 0) & (local < table.shape[0])
        x = F.embedding(local.where(mine, 0), table) * mine[:, None]
        return self._communicator.all_reduce(x, "tp")

    def _attention(
        self, layer: Layer, x: Tensor, batch: Batch, keys: Tensor, values: Tensor
    ) -> Tensor:
        q = self._kernels.rope_and_cache(
            F.linear(x, layer.qkv, layer.qkv_bias),
            self._cos,
            self._sin,
            batch.positions,
            batch.slots,
            keys,
            values,
            layer.q_norm,
            layer.k_norm,
            self._model.norm_eps,
        )
        x = F.linear(batch.context.attend(self._kernels, q, keys, values).flatten(1), layer.output)
        if self._sum_attention:
            x = self._communicator.all_reduce(x, "tp")
        return x if layer.output_bias is None else x + layer.output_bias

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        x = F.linear(self._kernels.silu_mul(F.linear(x, layer.gate_up)), layer.down)
        return self._communicator.all_reduce(x, "tp") if self._sum_mlp else x


class NamedDecoder(Decoder):
    """The same in ranges for Nsight Systems. A class of its own, so that a decoder that nobody
    watches asks nothing."""

    def _in_turn(self) -> Iterator[tuple[int, Layer]]:
        for index, layer in super()._in_turn():
            with self._communicator.context.ranges.span("layer {}", index):
                yield index, layer

    def _attention(
        self, layer: Layer, x: Tensor, batch: Batch, keys: Tensor, values: Tensor
    ) -> Tensor:
        with self._communicator.context.ranges.span("attention"):
            return super()._attention(layer, x, batch, keys, values)

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        with self._communicator.context.ranges.span("mlp"):
            return super()._mlp(layer, x)


def rotary_table(model: ModelShape, max_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, [max_len, head_dim / 2] float32 each.

    "llama3" stretches the long wavelengths as Llama 3.1 does (Hugging Face's
    `_compute_llama3_parameters`).
    """
    frequency = 1.0 / model.rope_theta ** (
        torch.arange(0, model.head_dim, 2).float() / model.head_dim
    )
    scaling = dict(model.rope_scaling)
    if scaling:
        factor, low, high = (
            float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor")
        )
        original = float(scaling["original_max_position_embeddings"])
        wavelength = 2 * math.pi / frequency
        blend = (original / wavelength - low) / (high - low)
        smooth = (1 - blend) * frequency / factor + blend * frequency
        stretched = torch.where(wavelength > original / low, frequency / factor, frequency)
        between = (wavelength >= original / high) & (wavelength <= original / low)
        frequency = torch.where(between, smooth, stretched)
    angles = torch.arange(max_len).float()[:, None] * frequency[None, :]
    return angles.cos(), angles.sin()
