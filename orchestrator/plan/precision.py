"""In what a deployment keeps its numbers, from what was asked and what a checkpoint stores."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from strategies import ModelShape, Placement, Topology
from strategies.precision import Precision
from workers import engines
from workers.messages import EnginePlan

LEAST_CAPABILITY = (8, 9)  # compute capability of the first GPUs with e4m3: Ada


def resolve(experiment: Experiment, model: ModelShape, device: Literal["cuda", "cpu"]) -> Precision:
    """The precision of all deployments of an experiment. Raises UserError where what was asked
    contradicts itself."""
    return precision_of(
        resolve_dtype(experiment.dtype, device),
        experiment.quantization,
        experiment.kv_cache_dtype,
        experiment.precision_policy,
        model,
    )


def precision_of(
    dtype: str, quantization: str, kv_cache_dtype: str, policy: str, model: ModelShape
) -> Precision:
    """The same of single answers. quantization: "auto" is what the checkpoint stores."""
    if policy != "uniform" and quantization == "none":
        raise UserError(
            f"--precision-policy {policy} has FP8 in one phase, --quantization none in no phase; "
            "leave one of them out"
        )
    if policy != "uniform":
        return Precision(dtype, policy, kv_cache_dtype)
    stored = "none" if model.fp8 is None else "fp8"
    return Precision(dtype, stored if quantization == "auto" else quantization, kv_cache_dtype)


def resolve_dtype(dtype: str, device: Literal["cuda", "cpu"]) -> str:
    """`auto` is bfloat16 on GPUs and float32 on CPUs, where bfloat16 is slow and tokens are
    compared exactly."""
    return {"cuda": "bfloat16", "cpu": "float32"}[device] if dtype == "auto" else dtype


def check_hardware(plan: EnginePlan, topology: Topology) -> None:
    """Raise UserError where a plan has FP8 and a GPU has none."""
    asked = plan.precision.name
    if plan.device != "cuda" or asked == "none":
        return
    for device in topology.devices:
        if lacking := lacks_fp8(asked, device.name, device.capability):
            raise UserError(
                f"{lacking}; use --quantization none, without --kv-cache-dtype and "
                "--precision-policy"
            )


def lacks_fp8(asked: str, gpu: str, capability: tuple[int, int] | None) -> str | None:
    """Why a GPU has not the FP8 that is asked for, as a clause; None where it has, where none is
    asked for, and where its compute capability is not known."""
    if asked == "none" or capability is None or capability >= LEAST_CAPABILITY:
        return None
    return (
        f"{asked} needs GPUs of compute capability {_dotted(LEAST_CAPABILITY)} or more; "
        f"{gpu} has {_dotted(capability)}, and no FP8"
    )


def not_run(
    placement: Placement,
    model: ModelShape,
    kept: Precision,
    engine: str,
    gpu: str,
    capability: tuple[int, int] | None,
) -> str | None:
    """Why no run is made of the FP8 of a placement on GPUs of a kind, as a clause; None where one
    is, under any load, and where the engine could not run the placement without FP8 either, as one
    that is not installed here."""
    if kept.name == "none":
        return None
    if lacking := lacks_fp8(kept.name, gpu, capability):
        return lacking
    plan = EnginePlan(
        model=model,
        layout="the layout",
        placement=placement,
        checkpoint=None,
        dtype=kept.dtype,
        device="cuda",
        max_concurrency=1,
        max_len=1,
        prefill_tokens=1,
        quantization=kept.quantization,
        kv_cache_dtype=kept.kv_cache_dtype,
        capability=capability,
    )
    reason, shape = engines.refusal(engine, plan), replace(model, fp8=None)
    plain = replace(plan, model=shape, quantization="none", kv_cache_dtype="auto")
    if reason is None or reason == engines.refusal(engine, plain):
        return None
    return f"the engine {engine} cannot run it: {reason}"


def check_training_hardware(plan: EnginePlan, topology: Topology) -> None:
    """Raise UserError where a plan trains in FP8 and what it would run on has none."""
    assert plan.training is not None, "the plan trains"
    asked = plan.training.precision
    if not plan.training.is_fp8:
        return
    use = "use --precision bf16"
    if plan.device == "cpu":
        raise UserError(f"--precision {asked} needs GPUs, and CPUs are asked for; {use}")
    for device in topology.devices:
        if lacking := lacks_fp8(f"--precision {asked}", device.name, device.capability):
            raise UserError(f"{lacking}; {use}")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
