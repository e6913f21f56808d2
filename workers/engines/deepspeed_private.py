"""The private parts of DeepSpeed that the engine `deepspeed` uses. No other file names one.

Tried with DeepSpeed 0.19.8; pyproject.toml bounds the version accordingly. Each name is checked by
itself in tests/workers/test_deepspeed_private.py. This module imports without torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SHARED_MEMORY_OP = "deepspeed_shm_comm"  # NAME of the builder ShareMemCommBuilder


@dataclass(frozen=True, slots=True)
class BackendMethod:
    """A collective of DeepSpeed's backend.

    op: the operation, as columns name it. message: its first argument, whose bytes are the message
    as nccl-tests counts it: one tensor or a list of them.
    """

    op: str
    message: str


# Method of TorchBackend -> what it does. Every function of `deepspeed.comm` ends in one of its
# methods. DeepSpeed's own CommsLogger is public, but it does not know phases, leaves out
# all_gather_coalesced and waits for every call.
BACKEND_METHODS: Mapping[str, BackendMethod] = {
    "all_reduce": BackendMethod("all_reduce", "tensor"),
    "inference_all_reduce": BackendMethod("all_reduce", "tensor"),
    "all_gather": BackendMethod("all_gather", "tensor_list"),
    "all_gather_into_tensor": BackendMethod("all_gather", "output_tensor"),
    "all_gather_coalesced": BackendMethod("all_gather", "output_tensors"),
    "broadcast": BackendMethod("broadcast", "tensor"),
}


def disable_shared_memory_op() -> None:
    """Have CPU all-reduces go to torch.distributed; call it before `deepspeed.init_distributed`.

    DeepSpeed's own op for them is compiled at first use. That takes a compiler and a minute, a
    process killed meanwhile leaves a lock that stops every later one, and the op leaves files in
    /dev/shm.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {SHARED_MEMORY_OP: False}


def backend() -> Any:
    """The object that carries out the collectives of `deepspeed.comm`; None before
    `deepspeed.init_distributed`."""
    import deepspeed

    return deepspeed.comm.comm.cdb


@contextlib.contextmanager
def taking_for_all(group: Any) -> Iterator[None]:
    """Inside, DeepSpeed takes this process group for that of all ranks, and for those of all ranks
    that it would make. None: its own."""
    if group is None:
        yield
        return
    made = backend()
    made.new_group, made.get_world_group = (lambda ranks: group), (lambda: group)
    try:
        yield
    finally:
        del made.new_group, made.get_world_group


def stored(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter: its part under ZeRO-3, else all of it."""
    part: Tensor = getattr(parameter, "ds_tensor", parameter)
    return part


@dataclass(frozen=True, slots=True)
class TensorParallelGroup:
    """The one method of an `mpu` that `init_inference` calls. With it DeepSpeed makes no process
    group of its own."""

    group: Any

    def get_model_parallel_group(self) -> Any:
        """The process group of the ranks that share each layer."""
        return self.group


def float32_parts(optimizer: Any) -> Sequence[Tensor]:
    """The weights in float32 that ZeRO-3 keeps of this rank's part; none of other stages, whose
    optimizer steps them by itself."""
    parts: Sequence[Tensor] = getattr(optimizer, "fp32_partitioned_groups_flat", ())
    return parts


def share_gradients(optimizer: Any) -> Tensor:
    """Have ZeRO-3 in main memory step from the gradients that it sums, in float32, in place of a
    copy of them. Returns all of them, flat."""
    summed: Tensor = optimizer.grad_partitions_flat_buffer
    begin = 0
    for part in float32_parts(optimizer):
        part.grad = summed.narrow(0, begin, part.numel())
        begin += part.numel()
    return summed


def inner_optimizer(engine: Any) -> Any:
    """torch's optimizer, around which DeepSpeed may have one of its own."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def stepped(engine: Any) -> Sequence[Tensor]:
    """The tensors that torch's optimizer steps: of ZeRO, this rank's parts, flat."""
    inner = inner_optimizer(engine)
    return float32_parts(engine.optimizer) or [
        one for group in inner.param_groups for one in group["params"]
    ]


def link_moments(engine: Any) -> None:
    """Have ZeRO 1 and 2 find the moments of a parameter, which they do by themselves after the
    first step. ZeRO-3 looks them up each time."""
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def whole_shape(parameter: Tensor) -> Any:
    """The shape of all of a parameter, of which a rank of ZeRO-3 has none."""
    return getattr(parameter, "ds_shape", parameter.shape)


def whole(parameter: Tensor, what: str) -> Tensor:
    """A parameter in float32 ("weight") or one of its moments, gathered from all ranks of ZeRO."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found: Tensor = (
        safe_get_full_fp32_param(parameter)
        if what == "weight"
        else safe_get_full_optimizer_state(parameter, what)
    )
    return found


def put(parameter: Tensor, what: str, value: Tensor, rank: int) -> None:
    """Give ZeRO this rank's part of what `whole` returns."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_tensor"):
        if what == "weight":
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, what)
        return
    part = _part(parameter, value, rank)
    if what == "weight":
        utils.safe_set_local_fp32_param(parameter, part)
    else:
        utils.safe_set_local_optimizer_state(parameter, part, what)


def put_weight(parameter: Tensor, value: Tensor, rank: int) -> None:
    """Give ZeRO a weight: what it stores of it, and what it steps."""
    stores = stored(parameter).data
    stores.copy_(value if stores.shape == value.shape else _part(parameter, value, rank))
    put(parameter, "weight", value, rank)


def _part(parameter: Any, value: Tensor, rank: int) -> Tensor:
    size = parameter.ds_tensor.numel()  # the last part may be padded
    part = value.new_zeros(size)
    mine = value.flatten()[rank * size : (rank + 1) * size]
    part[: len(mine)] = mine
    return part


def loss_scaler(engine: Any) -> Any:
    """What ZeRO scales losses by in fp16: `cur_scale`, `cur_iter` and `last_overflow_iter`."""
    return engine.optimizer.loss_scaler


def free(engine: Any) -> None:
    """Give back the memory of an engine that was destroyed. Its objects live on, where hooks of
    ZeRO-3 refer to it and autograd to them; of its modules there is a list too."""
    from deepspeed.runtime.zero import parameter_offload, partition_parameters

    parameter_offload.FWD_MODULE_STACK.clear()
    # Ranks compare the numbers of their modules and parameters, and the process of another rank may
    # have had fewer engines. Those of modules go on in a default argument.
    partition_parameters.Init.param_id = 0
    parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    inner = inner_optimizer(engine)
    held = [list(engine.module.parameters()), vars(engine.optimizer), inner.state]
    for one in {id(tensor): tensor for tensor in _tensors(held)}.values():
        if (storage := one.untyped_storage()).resizable():  # pinned memory is not
            storage.resize_(0)
    inner.state.clear()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in lists and dictionaries, with what ZeRO-3 keeps of them."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
        yield from (
            one for one in (value.grad, getattr(value, "ds_tensor", None)) if one is not None
        )
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _tensors([key, one])
