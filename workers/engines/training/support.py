"""What the engine `torch` can train. Asked in the driver, without torch."""

from __future__ import annotations

import importlib.util
import os
import shutil

from strategies.memory import window_of
from strategies.placement import EMBEDDING, HEAD, Placement, Split
from strategies.tensor import COLUMN_PARALLEL, ROW_PARALLEL
from workers.engines.transformers_config import CONFIG_CLASSES
from workers.messages import EnginePlan

SHARED = {"dp", "fsdp"}  # axes that share out the batch
AXES = ("dp", "fsdp", "pp", "tp")
FP8 = "torchao"  # the package with FP8 for training
FP8_TOKENS = 16  # what a product in FP8 sums over is a multiple of this
COMPILERS = ("g++", "clang++")  # that torch.compile looks for
BY_ROWS = COLUMN_PARALLEL | {"embed_tokens", "lm_head"}  # of its weight, over tp


def refusal(plan: EnginePlan) -> str | None:
    """None, or why the engine cannot train the plan, as a clause."""
    return (
        of_model(plan)
        or _of_switches(plan)
        or _of_fusion(plan)
        or _of_heads(plan)
        or _of_placement(plan)
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


def _of_placement(plan: EnginePlan) -> str | None:
    """None, or what of the placement the engine would do in another way, as a clause: its cuts are
    those of FSDP2 and of one plan of DTensor, its stages those of torch's schedules."""
    placement = plan.placement
    strange = [axis for axis, _ in placement.mesh if axis not in AXES]
    if strange:
        return f"it knows no axis {strange[0]}; it knows {', '.join(AXES)}"
    if options := ", ".join(key for key, _ in placement.options if key != "engine"):
        return f"it has no option {options}"
    if placement.grads or placement.optimizer:
        return (
            "it cuts gradients and optimizer state where it cuts parameters; use --engine deepspeed"
        )
    return _of_tokens(placement) or _of_stages(plan) or _of_cuts(plan)


def _of_tokens(placement: Placement) -> str | None:
    shared = [axis for axis, degree in placement.mesh if axis in SHARED and degree > 1]
    batch = [axis for axis in placement.tokens.get("batch", ()) if placement.degree(axis) > 1]
    if sorted(batch) != sorted(shared):
        return (
            f"it shares out the batch over all of {' and '.join(sorted(SHARED))} that a layout has "
            f"({', '.join(shared) or 'none'}), and this one over {', '.join(batch) or 'none'}"
        )
    return "it shares out no sequence" if placement.tokens.get("sequence") else None


def _of_stages(plan: EnginePlan) -> str | None:
    assert plan.training is not None, "the plan trains"
    stages, ranks = plan.placement.stages, plan.placement.degree("pp")
    chunks = plan.training.chunks if ranks > 1 else 1
    if [stage.pp_rank for stage in stages] != [i % ranks for i in range(ranks * chunks)]:
        return (
            f"its stages are {chunks} a rank under the schedule {plan.training.schedule}, dealt in "
            "turns from pp_rank 0 on"
        )
    layers = [layer for stage in stages for layer in stage.layers]
    if layers != [*range(plan.model.num_layers)] or not (stages[0].embed and stages[-1].head):
        return "its stages have the layers in order, the first the embedding, the last the head"
    return None if all(stage.layers for stage in stages) else "each of its stages needs a layer"


def _of_cuts(plan: EnginePlan) -> str | None:
    """None, or the first parameter that is cut otherwise, as a clause. Cuts over one rank are
    none."""
    placement = plan.placement
    for name, _ in plan.model.parameters():
        made = [split for split in placement.splits(name) if placement.degree(split.axis) > 1]
        over_tp = [split for split in made if split.axis == "tp"]
        dim = _dim_over_tp(name) if placement.degree("tp") > 1 else None
        if [split.dim for split in over_tp] != ([] if dim is None else [dim]):
            where = "whole" if dim is None else f"cut at dim {dim}"
            return f"over tp it cuts attention, MLP, embedding and head, and needs {name} {where}"
        if not all(_is_even(split, name) for split in over_tp):
            return f"over tp it cuts into equal parts, and the layout does not cut {name} so"
        over_fsdp = [split for split in made if split.axis != "tp"]
        rows = [split.axis for split in over_fsdp if _is_by_rows(split)]
        if len(rows) != len(over_fsdp) or rows != ["fsdp"] * (placement.degree("fsdp") > 1):
            return (
                "over fsdp it cuts every parameter once, by rows, chunked, and over dp none, and "
                f"the layout does not cut {name} so"
            )
    return None


def _dim_over_tp(name: str) -> int | None:
    """The dim at which a parameter is cut over tp; None for one that is whole."""
    module, kind = name.split(".")[-2:]
    if module in ROW_PARALLEL:
        return 1 if kind == "weight" else None
    return 0 if module in BY_ROWS else None


def _is_even(split: Split, name: str) -> bool:
    """Whether a cut over tp is into equal parts, of the vocabulary nearly so."""
    if split.parts is None:
        return True
    return name in (EMBEDDING, HEAD) and max(split.parts) - min(split.parts) <= 1


def _is_by_rows(split: Split) -> bool:
    return split.dim == 0 and split.parts is None and (split.chunked or split.unit == 1)
