"""What torch communicates in a step of training, counted in one process over a group that is not
there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from strategies import ModelShape, Placement, TrainingLoad
from strategies.training import micro_batches
from workers.engines.transformers_config import shape_to_config

OPS = {
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
}


class Counting(TorchDispatchMode):
    """Operation -> calls and bytes of the largest tensor of each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Let DTensor take its operators apart first, so that what they send is seen."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        op = OPS.get(func._schema.name.partition("::")[2])
        if op and func.namespace in ("c10d", "_c10d_functional"):
            self.calls[op] += 1
            self.bytes[op] += max(one.nbytes for one in _tensors((*args, out)))
        return out


def counted(placement: Placement, model: ModelShape, load: TrainingLoad) -> dict[str, Any]:
    """Operation -> (calls, bytes) of rank 0, which trains in float32 over one axis of two ranks."""
    ((axis, ranks),) = placement.mesh
    with _group(ranks):
        made = transformers.AutoModelForCausalLM.from_config(
            shape_to_config(model), dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        mesh = init_device_mesh("cpu", (ranks,))
        if load.activation_checkpointing == "full":
            for layer in made.model.layers:
                layer.forward = _recomputed(layer)
        if axis == "fsdp":
            for layer in made.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(made, mesh=mesh)
        else:
            parallelize_module(made, mesh, _plan(made))
        with Counting() as counting, loss_parallel():
            for _ in range(micro_batches(placement, load)):
                _loss(made, load).backward()
            for parameter in made.parameters():
                _sum(parameter)
    return {op: (calls, counting.bytes[op]) for op, calls in counting.calls.items()}


@contextmanager
def _group(ranks: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _recomputed(layer: nn.Module) -> Any:
    forward = layer.forward

    def again(hidden: Tensor, **kwargs: Any) -> Tensor:
        out: Tensor = checkpoint(forward, hidden, use_reentrant=False, **kwargs)
        return out

    return again


def _loss(made: nn.Module, load: TrainingLoad) -> Tensor:
    size = (load.micro_batch_size, load.seq_len)
    tokens = torch.zeros(size, dtype=torch.int64)
    positions = torch.arange(load.seq_len)[None]
    logits = made(tokens, position_ids=positions, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")


def _sum(parameter: Tensor) -> None:
    """A gradient of which each rank has a part of the sum."""
    grad = parameter.grad
    if isinstance(parameter, DTensor) and grad.placements != parameter.placements:
        grad.redistribute(placements=parameter.placements).to_local()


def _plan(made: nn.Module) -> dict[str, Any]:
    return {name: style for name, module in made.named_modules() if (style := _style(name, module))}


def _style(name: str, module: nn.Module) -> Any:
    leaf, cut, whole = name.rpartition(".")[2], Shard(1), Replicate()
    if leaf == "self_attn":
        return PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": cut},
            desired_input_kwarg_layouts={"hidden_states": whole},
        )
    if leaf == "mlp":
        return PrepareModuleInput(input_layouts=(cut,), desired_input_layouts=(whole,))
    if leaf == "embed_tokens":
        return RowwiseParallel(input_layouts=whole, output_layouts=cut)
    if leaf == "lm_head":
        return ColwiseParallel(input_layouts=cut, use_local_output=False)
    if leaf in ("o_proj", "down_proj"):
        return RowwiseParallel(output_layouts=cut)
    if isinstance(module, nn.Linear):
        return ColwiseParallel()
    return SequenceParallel(use_local_output=True) if leaf.endswith("norm") else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
