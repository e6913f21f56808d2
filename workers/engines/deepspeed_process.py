"""DeepSpeed in the process of one rank: what it reads from the environment, what it prints, and the
process group that it joins and leaves."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from strategies.errors import Refused
from workers.engines import deepspeed_private

if TYPE_CHECKING:
    import torch

    from workers.rank import RankContext


def set_environment(context: RankContext) -> Callable[[], None]:
    """Set the environment variables that DeepSpeed reads. Returns a function that puts the old
    values back. The ranks have met already, so the address is not used."""
    index = context.device.index
    wanted = {
        "DS_ACCELERATOR": context.device.type,
        "RANK": str(context.rank),
        "WORLD_SIZE": str(context.placement.num_ranks),
        "LOCAL_RANK": str(context.rank if index is None else index),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)

    def restore() -> None:
        for name in wanted:
            os.environ.pop(name, None)
        os.environ.update(before)

    return restore


def check_dtype(dtype: str) -> None:
    """Raise Refused where DeepSpeed refuses a dtype on this device, as float16 on CPUs that have no
    instructions for it."""
    from deepspeed.accelerator import get_accelerator

    if dtype == "float16" and not get_accelerator().is_fp16_supported():
        raise Refused(
            "DeepSpeed has no float16 on this CPU, which cannot multiply in it (AVX512-FP16 or "
            "AMX-FP16); use bfloat16, or --engine torch"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the user's terminal what DeepSpeed prints as it builds, and torch's warnings about
    the deprecated names that it uses."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def connect(device: torch.device) -> Any:
    """Have DeepSpeed use the process group that there is, or one of this rank alone, which it wants
    too; returns its backend."""
    import deepspeed
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore  # torch.distributed has it, not for mypy

    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    deepspeed_private.disable_shared_memory_op()
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed_private.backend()


def disconnect() -> None:
    """Leave the process groups, and have DeepSpeed forget them."""
    import deepspeed
    import torch.distributed as dist

    if dist.is_initialized():
        deepspeed.comm.destroy_process_group()


def all_done(done: bool, device: torch.device) -> bool:
    """Whether every rank is done: the question that `synced_gpus` of `generate` asks in each step,
    but asked through DeepSpeed, where it is counted."""
    import deepspeed
    import torch

    waiting = torch.tensor([0 if done else 1], device=device)
    deepspeed.comm.all_reduce(waiting)
    return not waiting.item()
