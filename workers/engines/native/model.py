"""One plain decoder for the Llama family (Llama, Mistral, Qwen2, Qwen3): the layers of one rank,
cut as its placement says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.backends import Sum
from workers.communicator import Communicator
from workers.engines.native.cache import PagedCache
from workers.engines.native.contexts import Context
from workers.engines.native.kernels import Kernels
from workers.engines.native.kernels.fp8 import Norm
from workers.engines.native.kernels.reference import Outbox, Rope
from workers.engines.native.loading import Layer, Loader
from workers.engines.native.matrices import Matrix, Read, gated, queries
from workers.engines.native.rope import rotary_table
from workers.engines.native.support import switches_of
from workers.records import DECODE, PREFILL
from workers.rows import grouped

OVERLAPPED = 1536  # tokens of a pass from which on sums over tp may overlap with the other half
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


class Partial(NamedTuple):
    """What this rank adds to a sum over tp, which is taken together with the norm behind it; or
    where the product has put it."""

    x: Tensor | Outbox


@dataclass(slots=True)
class Half:
    """Half of the tokens of a pass. What is done with each token by itself is done with one half
    while that of the other is summed over tp. x: or the sum that was begun."""

    positions: Tensor
    slot_mapping: Tensor
    x: Tensor | Sum
    residual: Tensor | None = None


class Decoder:
    """The stage of one rank. Where a placement cuts a projection by its rows over tp, the result is
    summed over tp.

    attention, ends, compiled_together: see `Kernels`. hidden_size, dtype: of the activations.
    layers: by phase and index, as the phase reads them. first_logit: the token of its first logit.
    head_axis: the mesh axis over which its vocabulary is cut, None where it is whole.
    """

    def __init__(
        self, load: Loader, communicator: Communicator, kernels: Kernels, max_len: int
    ) -> None:
        model, placement = load.plan.model, load.plan.placement
        self._communicator, self._kernels = communicator, kernels.pointwise
        self.attention, self.ends = kernels.attention, kernels.ends
        self.compiled_together = kernels.compiled_together
        self._eps, self.hidden_size, self.dtype = model.norm_eps, model.hidden_size, load.dtype
        rank = load.context.rank
        stages = placement.stages_of(rank)
        self.has_embedding = any(stage.embed for stage in stages)
        self.has_head = any(stage.head for stage in stages)
        self.layers: dict[str, dict[int, Layer]] = {PREFILL: {}, DECODE: {}}
        for index in (index for stage in stages for index in stage.layers):
            for phase, layer in load.layer(index).items():
                self.layers[phase][index] = layer
        self._load_ends(load)
        shape = (model.vocab_size, model.hidden_size)
        self._cuts_embedding = placement.is_split(EMBEDDING, "tp")
        self._first_token = placement.shard(EMBEDDING, shape, rank)[0].start
        self.first_logit = placement.shard(model.head_name, shape, rank)[0].start
        self.head_axis = "tp" if placement.is_split(model.head_name, "tp") else None
        self._sum_attention = placement.is_split("model.layers.0.self_attn.o_proj.weight", "tp")
        self._sum_mlp = placement.is_split("model.layers.0.mlp.down_proj.weight", "tp")
        overlaps = switches_of(load.plan).overlap == "on"
        self._overlaps = overlaps and (self._sum_attention or self._sum_mlp)
        self.weight_bytes = load.bytes
        self._cos, self._sin = (t.to(load.context.device) for t in rotary_table(model, max_len))

    def _load_ends(self, load: Loader) -> None:
        """What lies before the first layer and behind the last; a tied head is the embedding."""
        self._embedding = load(EMBEDDING) if self.has_embedding else None
        self._final_norm = load(FINAL_NORM) if self.has_head else None
        self._head: Tensor | None = None
        if self.has_head:
            model = load.plan.model
            tied = model.tie_embeddings and self._embedding is not None
            self._head = self._embedding if tied else load(model.head_name)

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        """Logits [n, vocabulary shard] on the last stage, activations [T, hidden] on the others."""
        x = self._embed(batch.inputs) if self.has_embedding else batch.inputs
        is_cut = self._overlaps and batch.context.phase == PREFILL and x.shape[0] >= OVERLAPPED
        x, residual = (self._in_halves if is_cut else self._in_one)(x, batch, cache)
        return self._logits(x, residual, batch.sampled) if self.has_head else residual.add_(x)

    @contextmanager
    def in_brief(self) -> Iterator[None]:
        """Inside, a pass launches every kernel that a whole one does, each a few times: it has the
        first two layers of each kind alone. What it returns means nothing."""
        whole = self.layers
        self.layers = {phase: _first_of_each_kind(layers) for phase, layers in whole.items()}
        try:
            yield
        finally:
            self.layers = whole

    def _in_one(self, x: Tensor, batch: Batch, cache: PagedCache) -> tuple[Tensor, Tensor]:
        """The layers: what the last one adds, and what it adds it to."""
        out: Tensor | Partial = x
        residual: Tensor | None = None
        last = next(reversed(self.layers[batch.context.phase]))
        for index, layer in self._in_turn(batch.context.phase):
            q, residual = self._normed(layer.qkv, out, residual, layer.input_norm)
            out = self._attention(layer, q, batch, cache.keys[index], cache.values[index])
            normed, residual = self._normed(layer.gate_up, out, residual, layer.post_norm)
            out = self._mlp(layer, normed, len(x), index == last)
        assert residual is not None, "a stage has at least one layer"
        return self._whole(out), residual

    def _in_halves(self, x: Tensor, batch: Batch, cache: PagedCache) -> tuple[Tensor, Tensor]:
        """The same. Only attention has all tokens at once."""
        size = -(-x.shape[0] // 2)
        whole = (batch.positions, batch.slot_mapping, x)
        halves = [Half(*of) for of in zip(*(torch.split(one, size) for one in whole), strict=True)]
        for index, layer in self._in_turn(batch.context.phase):
            keys, values = cache.keys[index], cache.values[index]
            asked = []
            for half in halves:
                made, half.residual = self._normed(
                    layer.qkv, half.x, half.residual, layer.input_norm
                )
                places = (half.positions, half.slot_mapping, keys, values)
                asked.append(self._queries(layer, made, *places))
            seen = batch.context.attend(
                self.attention, torch.cat(asked), keys, values, layer.window
            )
            for half, mine in zip(halves, torch.split(seen, size), strict=True):
                made = layer.output.times(layer.output.input(mine.flatten(1)))
                half.x = self._begun(made, self._sum_attention)
                if layer.output_bias is not None:
                    half.x = self._whole(half.x) + layer.output_bias
            for half in halves:
                normed, half.residual = self._normed(
                    layer.gate_up, half.x, half.residual, layer.post_norm
                )
                made = layer.down.times(gated(layer.gate_up, normed, layer.down))
                half.x = self._begun(made, self._sum_mlp)
        residuals = [half.residual for half in halves if half.residual is not None]
        return torch.cat([self._whole(half.x) for half in halves]), torch.cat(residuals)

    def _in_turn(self, phase: str) -> Iterable[tuple[int, Layer]]:
        """Each layer with its index. The caller takes the next one when it is done with one."""
        return self.layers[phase].items()

    def _logits(self, x: Tensor, residual: Tensor, sampled: Tensor | None) -> Tensor:
        assert self._final_norm is not None
        assert self._head is not None
        if sampled is not None:
            x, residual = x[sampled], residual[sampled]
        x = self._kernels.add_rms_norm(x, residual, self._final_norm, self._eps)
        return F.linear(x, self._head)

    def _embed(self, tokens: Tensor) -> Tensor:
        table = self._embedding
        assert table is not None
        if not self._cuts_embedding:
            return F.embedding(tokens, table)
        mine = self.ends.embedded(tokens, table, self._first_token)
        return self._communicator.all_reduce(mine, "tp")

    def _normed(
        self, matrix: Matrix[Any], x: Tensor | Partial | Sum, residual: Tensor | None, norm: Tensor
    ) -> tuple[Any, Tensor]:
        """See `Matrix.normed`; `x` is summed before."""
        if isinstance(x, Partial):
            assert residual is not None, "a layer was before"
            how = Norm(norm, self._eps, matrix.in_fp8)
            return self._communicator.all_reduce_norm(x.x, residual, how, "tp"), residual
        return matrix.normed(self._whole(x), residual, norm, self._eps)

    def _whole(self, x: Tensor | Partial | Sum) -> Tensor:
        if isinstance(x, Tensor):
            return x
        if isinstance(x, Partial):
            assert isinstance(x.x, Tensor), "what a product hands over, a norm is behind"
            return self._communicator.all_reduce(x.x, "tp")
        return x()

    def _begun(self, x: Tensor, is_part: bool) -> Tensor | Sum:
        """The sum of `x` over tp, begun, where it is a part of one."""
        return self._communicator.start_all_reduce(x, "tp") if is_part else x

    def _queries(
        self, layer: Layer, x: Any, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        norms = (layer.q_norm, layer.k_norm, self._eps)
        rope = Rope(self._cos, self._sin, positions, slots, keys, values, *norms)
        return queries(layer.qkv, x, layer.qkv_bias, rope, self._kernels)

    def _attention(
        self, layer: Layer, x: Any, batch: Batch, keys: Tensor, values: Tensor
    ) -> Tensor | Partial:
        q = self._queries(layer, x, batch.positions, batch.slot_mapping, keys, values)
        seen = batch.context.attend(self.attention, q, keys, values, layer.window)
        read = layer.output.input(seen.flatten(1))
        if layer.output_bias is not None:
            out = layer.output.times(read)
            out = self._whole(Partial(out)) if self._sum_attention else out
            return out + layer.output_bias
        return self._product(layer.output, read, len(q), self._sum_attention)

    def _mlp(self, layer: Layer, x: Any, rows: int, is_last: bool) -> Tensor | Partial:
        """rows: of x. is_last: no norm is behind it."""
        read = gated(layer.gate_up, x, layer.down)
        return self._product(layer.down, read, rows, self._sum_mlp, is_last)

    def _product(
        self, matrix: Matrix[Read], x: Read, rows: int, is_part: bool, is_last: bool = False
    ) -> Tensor | Partial:
        """x matrix^T, where it is a part of a sum over tp summed, now or together with the norm
        behind it."""
        to = self._communicator.outbox(rows, "tp") if is_part and not is_last else None
        if to is not None and matrix.handed(x, to):
            return Partial(to)
        out = matrix.times(x)
        if not is_part:
            return out
        part = Partial(out)
        return part if self._communicator.fuses(out, "tp") else self._whole(part)


def _first_of_each_kind(layers: Mapping[int, Layer]) -> dict[int, Layer]:
    """Two of each: nothing is added to what the very first one reads."""
    kinds = grouped(layers, lambda index: layers[index].kind).values()
    first = chain.from_iterable(mine[:2] for mine in kinds)
    return {index: layers[index] for index in sorted(first)}


class NamedDecoder(Decoder):
    """The same decoder with named ranges around its layers, for Nsight Systems to show. It is a
    separate class, so that an ordinary decoder spends no time on ranges."""

    def _in_turn(self, phase: str) -> Iterator[tuple[int, Layer]]:
        for index, layer in super()._in_turn(phase):
            with self._communicator.context.ranges.span("layer {}", index):
                yield index, layer

    def _attention(
        self, layer: Layer, x: Any, batch: Batch, keys: Tensor, values: Tensor
    ) -> Tensor | Partial:
        with self._communicator.context.ranges.span("attention"):
            return super()._attention(layer, x, batch, keys, values)

    def _mlp(self, layer: Layer, x: Any, rows: int, is_last: bool) -> Tensor | Partial:
        with self._communicator.context.ranges.span("mlp"):
            return super()._mlp(layer, x, rows, is_last)
