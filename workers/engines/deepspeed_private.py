"""The private parts of DeepSpeed that the engine `deepspeed` uses. No other file names one.

Tried with DeepSpeed 0.19.8; pyproject.toml bounds the version accordingly. Each name is checked by
itself in tests/workers/test_deepspeed_private.py. This module imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
