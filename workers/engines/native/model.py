"""One plain decoder for the Llama family (Llama, Mistral, Qwen2, Qwen3): the layers of one rank,
cut as its placement says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.memory import window_of
from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers.communicator import Communicator
from workers.engines.native.cache import PagedCache
from workers.engines.native.contexts import Context
from workers.engines.native.kernels import Kernels
from workers.engines.native.rope import rotary_table
from workers.weights import Source

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Batch:
    """The new tokens of one forward pass.

    inputs: [T] int64 token ids on the first stage, [T, hidden] activations on the others.
    positions: [T] int64, places in the sequences. slot_mapping: [T] int64, places in the cache.
    sampled: [n] int64, the tokens whose logits are wanted; None: all.
    """

    inputs: Tensor
    positions: Tensor
    slot_mapping: Tensor
    context: Context
    sampled: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights as its rank holds them; queries, keys and values are one matrix, gate and
    up another. window: the newest tokens that its attention sees, None for all."""

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
    window: int | None


@dataclass(slots=True)
class Loader:
    """Makes the tensors of one rank; of each parameter it reads the rank's own slices alone.

    bytes: of the tensors made so far.
    """

    source: Source
    model: ModelShape
    placement: Placement
    rank: int
    dtype: torch.dtype
    device: torch.device
    bytes: int = 0
    _shapes: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._shapes = dict(self.model.parameters())

    def __call__(self, *names: str) -> Tensor:
        """The rank's parts of the parameters `names`, one below the other."""
        boxes = [self.placement.shard(name, self._shapes[name], self.rank) for name in names]
        rows = [box[0].stop - box[0].start for box in boxes]
        width = tuple(s.stop - s.start for s in boxes[0][1:])
        out = torch.empty((sum(rows), *width), dtype=self.dtype, device=self.device)
        for name, box, part in zip(names, boxes, torch.split(out, rows), strict=True):
            self.source.read(name, self._shapes[name], box, part)
        self.bytes += out.numel() * out.element_size()
        return out

    def optional(self, *names: str) -> Tensor | None:
        """The same, or None where this model has no such parameters."""
        return self(*names) if names[0] in self._shapes else None

    def layer(self, index: int) -> Layer:
        """Layer `index`."""
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
            window=window_of(self.model, index),
        )


class Decoder:
    """The stage of one rank. Where a placement cuts a projection by its rows over tp, the result is
    summed over tp.

    attention: its kernels. hidden_size, dtype: of the activations. first_logit: the token of its
    first logit. head_axis: the mesh axis over which its vocabulary is cut, None where it is whole.
    """

    def __init__(
        self, load: Loader, communicator: Communicator, kernels: Kernels, max_len: int
    ) -> None:
        model, placement = load.model, load.placement
        self._communicator, self._kernels = communicator, kernels.pointwise
        self.attention = kernels.attention
        self._eps, self.hidden_size, self.dtype = model.norm_eps, model.hidden_size, load.dtype
        stages = placement.stages_of(load.rank)
        self.has_embedding = any(stage.embed for stage in stages)
        self.has_head = any(stage.head for stage in stages)
        self.layers = {index: load.layer(index) for stage in stages for index in stage.layers}
        self._load_ends(load)
        shape = (model.vocab_size, model.hidden_size)
        self._cuts_embedding = placement.is_split(EMBEDDING, "tp")
        self._first_token = placement.shard(EMBEDDING, shape, load.rank)[0].start
        self.first_logit = placement.shard(model.head_name, shape, load.rank)[0].start
        self.head_axis = "tp" if placement.is_split(model.head_name, "tp") else None
        self._sum_attention = placement.is_split("model.layers.0.self_attn.o_proj.weight", "tp")
        self._sum_mlp = placement.is_split("model.layers.0.mlp.down_proj.weight", "tp")
        self.weight_bytes = load.bytes
        self._cos, self._sin = (t.to(load.device) for t in rotary_table(model, max_len))

    def _load_ends(self, load: Loader) -> None:
        """What lies before the first layer and behind the last; a tied head is the embedding."""
        self._embedding = load(EMBEDDING) if self.has_embedding else None
        self._final_norm = load(FINAL_NORM) if self.has_head else None
        self._head: Tensor | None = None
        if self.has_head:
            tied = load.model.tie_embeddings and self._embedding is not None
            self._head = self._embedding if tied else load(load.model.head_name)

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        """Logits [n, vocabulary shard] on the last stage, activations [T, hidden] on the others."""
        x = self._embed(batch.inputs) if self.has_embedding else batch.inputs
        residual: Tensor | None = None
        for index, layer in self._in_turn():
            x, residual = self._normed(x, residual, layer.input_norm)
            x = self._attention(layer, x, batch, cache.keys[index], cache.values[index])
            x, residual = self._normed(x, residual, layer.post_norm)
            x = self._mlp(layer, x)
        assert residual is not None, "a stage has at least one layer"
        return self._logits(x, residual, batch.sampled) if self.has_head else residual.add_(x)

    def _in_turn(self) -> Iterable[tuple[int, Layer]]:
        """Each layer with its index. The caller takes the next one when it is done with one."""
        return self.layers.items()

    def _normed(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the sum of `x` and the residual, and the sum itself. Before the first layer
        there is no residual yet."""
        if residual is None:
            return self._kernels.rms_norm(x, weight, self._eps), x
        return self._kernels.add_rms_norm(x, residual, weight, self._eps), residual

    def _logits(self, x: Tensor, residual: Tensor, sampled: Tensor | None) -> Tensor:
        assert self._final_norm is not None
        assert self._head is not None
        if sampled is not None:
            x, residual = x[sampled], residual[sampled]
        return F.linear(self._normed(x, residual, self._final_norm)[0], self._head)

    def _embed(self, tokens: Tensor) -> Tensor:
        table = self._embedding
        assert table is not None
        if not self._cuts_embedding:
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
            batch.slot_mapping,
            keys,
            values,
            layer.q_norm,
            layer.k_norm,
            self._eps,
        )
        x = batch.context.attend(self.attention, q, keys, values, layer.window)
        x = F.linear(x.flatten(1), layer.output)
        if self._sum_attention:
            x = self._communicator.all_reduce(x, "tp")
        return x if layer.output_bias is None else x + layer.output_bias

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        x = F.linear(self._kernels.silu_mul(F.linear(x, layer.gate_up)), layer.down)
        return self._communicator.all_reduce(x, "tp") if self._sum_mlp else x


class NamedDecoder(Decoder):
    """The same decoder with named ranges around its layers, for Nsight Systems to show. It is a
    separate class, so that an ordinary decoder spends no time on ranges."""

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
