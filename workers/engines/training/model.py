"""What a rank trains of a model: its stages, made of Transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from strategies.placement import EMBEDDING, HEAD, Stage
from workers.engines.training.observing import part
from workers.engines.transformers_config import shape_to_config
from workers.messages import EnginePlan

REPEATED = "repeated_heads"  # the name of our attention in float32
# What selective checkpointing keeps: the outputs of matrix products and of attention.
KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
# The kernels of torch's attention, fastest first on Hopper, by the names of --attention; those that
# take any input come last.
ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
Forward = Callable[..., Tensor]


class StageModule(nn.Module):
    """One pipeline stage: some layers, perhaps the embedding before and the head behind them.

    Its parameters have the names of the checkpoint. seq_len: tokens of a sequence, of which a rank
    of a tensor-parallel group has its share between the layers.
    """

    model: Any
    lm_head: Any
    rotary: Any

    def __init__(self, whole: Any, stage: Stage, tied: bool, seq_len: int) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.model = nn.Module()
        if stage.embed:
            self.model.embed_tokens = whole.model.embed_tokens
        self.model.layers = nn.ModuleDict({str(i): whole.model.layers[i] for i in stage.layers})
        if stage.head:
            self.model.norm, self.lm_head = whole.model.norm, whole.lm_head
        self.is_tied = tied
        self.tie()
        rotation: Any = type(whole.model.rotary_emb)
        self._rotation = partial(rotation, config=whole.config)
        self.rotary = None

    @property
    def layers(self) -> list[nn.Module]:
        """Its layers, in order."""
        return list(self.model.layers.values())

    def settle(self, recompute: str, fuses: bool, over_tp: bool = False) -> None:
        """Say how each layer runs, inside of what is hooked to it, as FSDP2's gathering.

        recompute: what of it is kept, see `kept_by`. fuses: whether it is compiled, with what it
        recomputes; but torch 2.13 traces neither what moves to the host nor, of DTensors, what is
        recomputed.
        """
        keep = kept_by(recompute)
        for layer in self.layers:
            if fuses and (over_tp or recompute == "cpu-offload"):
                layer.forward = keep(compiled(layer.forward))
            elif fuses:
                layer.forward = compiled(keep(layer.forward))
            else:
                layer.forward = keep(layer.forward)

    def tie(self) -> None:
        """Let embedding and head be one parameter where the model ties them. A head whose stage has
        no embedding keeps its own copy, under the embedding's name."""
        if self.is_tied and hasattr(self, "lm_head") and hasattr(self.model, "embed_tokens"):
            self.lm_head.weight = self.model.embed_tokens.weight

    def materialize(self, device: torch.device, kept_on: torch.device | None = None) -> None:
        """Give every parameter memory. device: on which is computed. kept_on: where parameters
        are; None: there too."""
        self.to_empty(device=kept_on or device)
        self.tie()  # each module got memory of its own
        self.rotary = self._rotation().to(device)

    def stored_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in a checkpoint, parameter) of each, a tied one once."""
        for name, parameter in self.named_parameters():
            yield (EMBEDDING if self.is_tied and name == HEAD else name), parameter

    def forward(self, x: Tensor) -> Tensor:
        """x: tokens int64 [batch, seq_len], or the hidden states of the stage before. Returns
        hidden states [batch, share of seq_len, hidden], or logits [batch, seq_len, vocabulary]."""
        with part("forward"):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        hidden = x
        if hasattr(self.model, "embed_tokens"):
            # Over tp its sum is still under way, and compiled layers do not take such a tensor.
            hidden = self.model.embed_tokens(x).clone()
        positions = torch.arange(self.seq_len, device=hidden.device)[None]
        rotation = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=None, position_ids=positions, position_embeddings=rotation
            )
        if hasattr(self, "lm_head"):
            hidden = self.lm_head(self.model.norm(hidden))
        return hidden


def stages_of(plan: EnginePlan, rank: int) -> list[StageModule]:
    """The stages of a rank, in order, their parameters on the meta device."""
    assert plan.training is not None, "the plan trains"
    shape, dtype = plan.model, getattr(torch, plan.dtype)
    with torch.device("meta"):
        make: Any = transformers.AutoModelForCausalLM.from_config
        whole = make(shape_to_config(shape), dtype=dtype, attn_implementation=attention_of(dtype))
    whole.train()
    return [
        StageModule(whole, stage, shape.tie_embeddings, plan.training.seq_len)
        for stage in plan.placement.stages_of(rank)
    ]


def attention_of(dtype: torch.dtype) -> str:
    """The attention of Transformers' modules. In float32 no kernel of torch for GPUs lets query
    heads share a head of keys, and what is left keeps all scores: so these are repeated."""
    if dtype != torch.float32:
        return "sdpa"
    transformers.AttentionInterface.register(REPEATED, _repeated)
    return REPEATED


def _repeated(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query: [batch, heads, seq_len, head_dim]; key, value: of fewer heads. Returns [batch,
    seq_len, heads, head_dim]."""
    groups = module.num_key_value_groups
    if groups > 1:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    out = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=kwargs.get("scaling")
    )
    return out.transpose(1, 2).contiguous(), None


def kept_by(mode: str) -> Callable[[Forward], Forward]:
    """What makes of a layer's forward pass one that keeps less for the backward pass.

    mode: "off", everything; "full", its input; "selective", the outputs of products too;
    "cpu-offload", its input, in the memory of the host.
    """
    if mode == "off":
        return lambda forward: forward
    if mode == "full":
        return lambda forward: partial(checkpoint, forward, use_reentrant=False)
    if mode == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        return lambda forward: partial(
            checkpoint, forward, use_reentrant=False, context_fn=contexts
        )
    return lambda forward: partial(_on_host, forward)


def compiled(function: Forward) -> Forward:
    """The same, its small operations together in few kernels. Under DDP torch would cut a layer at
    its buckets."""
    torch._dynamo.config.optimize_ddp = False
    return torch.compile(function)


def attending(first: str | None) -> AbstractContextManager[None]:
    """Inside, torch's attention takes the first of its kernels that computes what is asked for.
    first: "cudnn" or "flash", which of them is tried before the others; None: as torch has it."""
    if first is None:
        return nullcontext()
    kernels = sorted(ATTENTION.values(), key=lambda one: one != ATTENTION[first])
    context: Any = sdpa_kernel
    found: AbstractContextManager[None] = context(kernels, set_priority=True)
    return found


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of all tokens, float32 []. logits: [batch, seq_len, vocabulary]; labels: int64
    [batch, seq_len]."""
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def _on_host(forward: Forward, hidden: Tensor, **kwargs: Any) -> Tensor:
    with save_on_cpu(pin_memory=hidden.is_cuda):
        out: Tensor = checkpoint(forward, hidden, use_reentrant=False, **kwargs)
    return out


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_kept = op in KEPT
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
