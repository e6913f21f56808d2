"""A Transformers model as DeepSpeed runs it: cut by AutoTP, or spread by ZeRO-3. At no time is the
whole model in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import deepspeed
import torch

from workers.engines.deepspeed_layouts import part_of
from workers.engines.deepspeed_private import TensorParallelGroup
from workers.engines.deepspeed_process import check_dtype
from workers.engines.transformers import empty_model, fill, reset_rotary
from workers.messages import EnginePlan
from workers.weights import open_source

if TYPE_CHECKING:
    from workers.rank import RankContext


def auto_tp_model(context: RankContext, plan: EnginePlan) -> Any:
    """A replica that AutoTP cuts over the tp axis while it is still empty; then each rank fills its
    own slices."""
    group = context.groups.get("tp")
    cut = {} if group is None else {"tp_group": group, "mpu": TensorParallelGroup(group)}
    # A grain above 1 would cut narrow layers unevenly.
    tensor_parallel = {"tp_size": plan.placement.degree("tp"), "tp_grain_size": 1, **cut}
    engine = deepspeed.init_inference(
        empty_model(plan),
        tensor_parallel=tensor_parallel,
        dtype=getattr(torch, plan.dtype),
        replace_with_kernel_inject=False,
    )
    shapes, source = dict(plan.model.parameters()), open_source(plan.checkpoint)
    for name, mine in engine.module.named_parameters():
        # AutoTP unties the head from the embedding.
        name = name if name in shapes else "model.embed_tokens.weight"
        box = part_of(shapes[name], tuple(mine.shape), context.at("tp"))
        source.read(name, shapes[name], box, mine.data)
    return engine.module.eval()


def zero_model(context: RankContext, plan: EnginePlan) -> tuple[Any, Callable[[], None]]:
    """A ZeRO-3 model, and what destroys it.

    One block at a time is made whole on every rank and then cut at once, so no more than a block is
    ever whole.
    """
    check_dtype(plan.dtype)
    config = _zero_config(plan)
    model, source = empty_model(plan), open_source(plan.checkpoint)
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    layers = [f"model.layers.{i}" for i in range(plan.model.num_layers)]
    for name in ("model.embed_tokens", *layers, "model.norm", "lm_head"):
        block = model.get_submodule(name)
        fill(block, name, source, lambda _: context.device, made)
        deepspeed.zero.Init(module=block, config_dict_or_path=config)
    reset_rotary(model, context.device)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine.module.eval(), engine.destroy


def _zero_config(plan: EnginePlan) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": plan.dtype == "bfloat16"},
        "fp16": {"enabled": plan.dtype == "float16"},
        "zero_optimization": {
            "stage": 3,
            # Vectors stay whole on every rank, matrices of any size are gathered for each use.
            "stage3_param_persistence_threshold": plan.model.hidden_size,
            # DeepSpeed's linear function saves memory in training only, and replaces torch's for
            # the whole process.
            "memory_efficient_linear": False,
        },
    }
