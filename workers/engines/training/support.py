"""What the engine `torch` can train. Asked in the driver, without torch."""

from __future__ import annotations

import importlib.util
import os
import shutil

from strategies.memory import window_of
from strategies.placement import EMBEDDING, Placement
from workers.engines.transformers_config import CONFIG_CLASSES
from workers.messages import EnginePlan

SHARED = {"dp", "fsdp"}  # axes that share out the batch
AXES = ("dp", "fsdp", "pp", "tp")
FP8 = "torchao"  # the package with FP8 for training
FP8_TOKENS = 16  # what a product in FP8 sums over is a multiple of this
COMPILERS = ("g++", "clang++")  # that torch.compile looks for
OF_TP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def refusal(plan: EnginePlan) -> str | None:
    """None, or why the engine cannot train the plan, as a clause."""
    return (
        of_model(plan)
        or _of_switches(plan)
        or _of_fusion(plan)
        or _of_heads(plan)
        or _of_placement(plan.placement, plan.model.num_layers)
    )


def of_model(plan: EnginePlan) -> str | None:
    """None, or why neither engine trains this model in this way, as a clause."""
    model, asked = plan.model, plan.training
    assert asked is not None, "the plan trains"
    if model.family not in CONFIG_CLASSES:
        return f"it does not train the family {model.family}; it trains {', '.join(CONFIG_CLASSES)}"
    windows = [window for i in range(model.num_layers) if (window := window_of(model, i))]
    if windows and min(windows) < asked.seq_len:
        return (
            f"its attention has no window, and that of {model.name} is {min(windows)} tokens; use "
            f"--seq-len {min(windows)} or less"
        )
    return None


def _of_fusion(plan: EnginePlan) -> str | None:
    """None, or why layers are not compiled in this layout, as a clause."""
    assert plan.training is not None, "the plan trains"
    if not plan.training.compiles:
        return None
    recomputes = plan.training.activation_checkpointing == "selective"
    if recomputes and plan.placement.degree("tp") > 1:
        return (
            "in layers that are compiled and cut over tp it cannot select what to keep; use "
            "--fusion off, or another --activation-checkpointing"
        )
    names = (os.environ.get("CXX", ""), *COMPILERS)
    if plan.device == "cpu" and not any(name and shutil.which(name) for name in names):
        return (
            "--fusion on needs a C++ compiler on CPUs, and neither CXX nor PATH has one; install "
            "g++, or leave --fusion out"
        )
    return None


def _of_switches(plan: EnginePlan) -> str | None:
    """None, or why it does not do what is asked in this layout, as a clause."""
    asked, placement = plan.training, plan.placement
    assert asked is not None, "the plan trains"
    if asked.offload == "optimizer+params" and {a for a, n in placement.mesh if n > 1} - SHARED:
        return "it offloads the parameters of replicas alone (fsdp); use --offload optimizer"
    if asked.offload == "optimizer+params" and placement.degree("fsdp") == 1:
        return (
            "it offloads parameters that are cut over replicas; use fsdpN, or --offload optimizer"
        )
    if not asked.is_fp8:
        return None
    if placement.degree("tp") > 1:
        return "it has no FP8 over tp; use dp, fsdp or pp, or --precision bf16"
    tokens = asked.micro_batch_size * asked.seq_len
    if tokens % FP8_TOKENS:
        return (
            f"FP8 products take tokens of a micro-batch by {FP8_TOKENS}, and "
            f"{asked.micro_batch_size} x {asked.seq_len} are {tokens}; use --seq-len "
            f"{FP8_TOKENS * -(-asked.seq_len // FP8_TOKENS)}"
        )
    if plan.device != "cpu" and importlib.util.find_spec(FP8) is None:  # a CPU is refused anyway
        return f"FP8 needs {FP8}: pip install 'shard-orchestrator[fp8]'; or use --precision bf16"
    return None


def _of_heads(plan: EnginePlan) -> str | None:
    assert plan.training is not None, "the plan trains"
    tp, seq_len, heads = plan.placement.degree("tp"), plan.training.seq_len, plan.model.num_kv_heads
    if seq_len % tp:
        return (
            f"{seq_len} tokens do not divide over tp={tp}; use --seq-len {tp * -(-seq_len // tp)}"
        )
    if heads % tp:
        return f"it gives every rank whole KV heads, and {heads} do not divide over tp={tp}"
    return None


def _of_placement(placement: Placement, layers: int) -> str | None:
    strange = [axis for axis, _ in placement.mesh if axis not in AXES]
    if strange:
        return f"it knows no axis {strange[0]}; it knows {', '.join(AXES)}"
    if placement.grads or placement.optimizer:
        return (
            "it cuts gradients and optimizer state where it cuts parameters; use --engine deepspeed"
        )
    if placement.degree("tp") == 1:
        return None
    names = [f"model.layers.{i}.{_module(one)}.weight" for i in range(layers) for one in OF_TP]
    if not all(placement.is_split(name, "tp") for name in (*names, EMBEDDING)):
        return (
            "over tp it cuts attention, MLP and embedding, and the layout leaves some of it whole"
        )
    if any(
        split.axis == "tp" and split.parts for name in names for split in placement.splits(name)
    ):
        return "over tp it cuts layers into equal parts"
    return None


def _module(projection: str) -> str:
    of_attention = projection[0] in "qkvo"
    return f"{'self_attn' if of_attention else 'mlp'}.{projection}"
