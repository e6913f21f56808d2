"""From a plan to the arguments of vLLM's engine, and which plans it can run. Imports without
vLLM."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strategies import Load, Topology, plan_layout
from strategies.memory import kv_bytes_per_token
from workers.engines.vllm.ablation import ABLATED
from workers.messages import EnginePlan, dealt

AXES = ("dp", "pp", "tp")
BUNDLES = "VLLM_RAY_BUNDLE_INDICES"  # in which its workers are, in the order of their ranks
COPIED = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"  # names of variables that they get beside vLLM's own
EXTENSION = "workers.engines.vllm.worker.Recorder"
# Of an observed run. Nothing of it exists before that begins: vLLM makes its profiler then.
PROFILER = {
    "profiler": "torch",
    "torch_profiler_with_stack": False,
    "torch_profiler_dump_cuda_time_total": False,
    "ignore_frontend": True,
}
# settings of vLLM that an option of ours decides, and which
OURS = {
    "model": "--model",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "seed": "--seed",
    "load_format": "--load-format",
    "max_model_len": "--input-len and --output-len",
    "max_num_seqs": "--max-concurrency",
    "max_num_batched_tokens": "--chunked-prefill-size",
    "enable_chunked_prefill": "--chunked-prefill-size",
    "enforce_eager": "--cuda-graphs",
    "disable_custom_all_reduce": "--allreduce",
    "tensor_parallel_size": "--strategy",
    "pipeline_parallel_size": "--strategy",
    "data_parallel_size": "--strategy",
    "distributed_executor_backend": "--strategy",
    "disable_log_stats": "the measurement",
    "profiler_config": "the measurement",
    "skip_tokenizer_init": "the measurement",
    "worker_extension_cls": "the measurement",
}
OWN = "own"  # as `vllm serve` has it
LEAST = 2048  # tokens of a step that this is at least
LEAST_SEATS = {"cpu": 128, "cuda": 256}  # requests at once that it has room for at least


def choices(plan: EnginePlan) -> dict[str, tuple[str, ...]]:
    """The switches that are mapped to a setting of vLLM, and the values of each, its own default
    first. Its build for CPUs has neither graphs nor a choice of all-reduce."""
    common = {
        "batching": ("continuous",),
        "chunked_prefill_size": (OWN, str(plan.prefill_tokens), "off"),
    }
    if plan.device == "cpu":
        return {**common, "cuda_graphs": ("off",)}
    return {**common, "cuda_graphs": ("on", "off"), "allreduce": ("custom", "nccl")}


def refusal(plan: EnginePlan) -> str | None:
    """None, or the first reason why vLLM cannot run the plan, as a clause."""
    checks = (_fp8, _installed, _axes, _pipeline, _layout, _watched, _arguments)
    return next((reason for check in checks if (reason := check(plan)) is not None), None)


def _installed(plan: EnginePlan) -> str | None:
    if importlib.util.find_spec("vllm") is None:
        return "it is not installed: pip install 'shard-orchestrator[vllm]'"
    return None


def _axes(plan: EnginePlan) -> str | None:
    unknown = [axis for axis, degree in plan.placement.mesh if axis not in AXES and degree > 1]
    return f"it does not know the axis {unknown[0]}" if unknown else None


def _pipeline(plan: EnginePlan) -> str | None:
    if plan.device == "cpu" and plan.placement.degree("pp") > 1:
        return "on a CPU it does not do pipeline stages (pp)"
    return None


def _layout(plan: EnginePlan) -> str | None:
    """vLLM cuts a model in its own way: that of the plain strategies."""
    degrees = ((axis, plan.placement.degree(axis)) for axis in reversed(AXES))
    name = "".join(f"{axis}{degree}" for axis, degree in degrees)
    topology = Topology.uniform(plan.placement.num_ranks)
    plain = plan_layout(name, plan.model, Load(1, 1, 1), topology).placement
    if plain == plan.placement:
        return None
    return f"it cuts a model as {name} does, and {plan.layout} cuts it in another way"


def _watched(plan: EnginePlan) -> str | None:
    return "its processes do not run under Nsight Systems" if plan.nsys_dir is not None else None


def _fp8(plan: EnginePlan) -> str | None:
    if plan.quantization not in ("none", "fp8"):
        return f"it has one precision for both phases (--precision-policy {plan.quantization})"
    if plan.device == "cpu" and plan.precision.name != "none":
        return f"on a CPU it has no FP8, and {plan.precision.name} is asked for"
    if plan.quantization == "none" and plan.model.fp8 is not None and plan.checkpoint:
        return "it keeps a checkpoint in FP8 as it is stored, and --quantization none is asked for"
    return None


def _arguments(plan: EnginePlan) -> str | None:
    """Why a setting cannot be given; its names are read from vLLM's source, as importing it takes
    many seconds."""
    if not plan.engine_args:
        return None
    known = known_arguments()
    for name, _ in plan.engine_args:
        if name in OURS:
            return f"--engine-arg {name} is not its to set; it follows {OURS[name]}"
        if name not in known:
            near = difflib.get_close_matches(name, known - OURS.keys(), 1)
            there = f"the nearest is {near[0]}" if near else "its EngineArgs names them"
            return f"it has no setting {name} (--engine-arg); {there}"
    return None


def known_arguments() -> frozenset[str]:
    """The names of the settings of the vLLM that is installed."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations is not None
    source = Path(found.submodule_search_locations[0], "engine", "arg_utils.py").read_text("utf-8")
    classes = (one for one in ast.parse(source).body if isinstance(one, ast.ClassDef))
    body = next(one.body for one in classes if one.name == "EngineArgs")
    names = (one.target for one in body if isinstance(one, ast.AnnAssign))
    return frozenset(name.id for name in names if isinstance(name, ast.Name))


# -- what is given to vLLM


def arguments(plan: EnginePlan, model: str) -> dict[str, Any]:
    """The arguments of vLLM's EngineArgs for one replica. What is not here is vLLM's own default.

    model: the folder of the checkpoint, or of a config alone.
    """
    ranks = plan.placement.degree("tp") * plan.placement.degree("pp")
    return {
        "model": model,
        "load_format": "auto" if plan.checkpoint else "dummy",
        "skip_tokenizer_init": True,
        "dtype": plan.dtype,
        **_precision(plan),
        "seed": plan.seed,
        "max_model_len": plan.max_len,
        **_room(plan),
        **_prompt_budget(plan),
        "tensor_parallel_size": plan.placement.degree("tp"),
        "pipeline_parallel_size": plan.placement.degree("pp"),
        "distributed_executor_backend": _executor(plan, ranks),
        "worker_extension_cls": EXTENSION,
        "profiler_config": PROFILER,
        **_switched(plan),
        **unfused(plan, {name: value_of(text) for name, text in plan.engine_args}),
    }


def _precision(plan: EnginePlan) -> dict[str, str]:
    """What is FP8. Of a checkpoint that stores it vLLM reads the form itself."""
    stored = plan.model.fp8 is not None and plan.checkpoint
    weights = {} if plan.quantization == "none" or stored else {"quantization": "fp8"}
    return weights | ({"kv_cache_dtype": "fp8"} if plan.kv_cache_dtype == "fp8" else {})


def _switched(plan: EnginePlan) -> dict[str, object]:
    """Settings by switch. Its own all-reduce goes over the links that `p2p` leaves out."""
    switches = plan.switches.settled(choices(plan))
    eager = {"enforce_eager": True} if switches.cuda_graphs == "off" else {}
    library = switches.allreduce == "nccl" or plan.ablation == "p2p"
    return {**eager, **({"disable_custom_all_reduce": True} if library else {})}


def unfused(plan: EnginePlan, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings given by the user, and where runs without communication are compared with those that
    have it, in both of them without the fusion of an all-reduce with the norm behind it: its kernel
    cannot be left out."""
    if "comm" not in (plan.ablation, *plan.ablations) or plan.device == "cpu":
        return dict(given)
    asked = given.get("compilation_config", {})
    config = asked if isinstance(asked, dict) else {"mode": asked}
    passes = {**config.get("pass_config", {}), "fuse_allreduce_rms": False}
    return {**given, "compilation_config": {**config, "pass_config": passes}}


def _executor(plan: EnginePlan, ranks: int) -> str:
    """What starts vLLM's workers. Inside a placement group vLLM would choose Ray by itself."""
    if plan.spans_nodes:
        return "ray"
    return "mp" if ranks > 1 else "uni"


def seats(plan: EnginePlan) -> int:
    """Most requests in flight in one replica: those of the first, which has the most."""
    return dealt(0, plan.max_concurrency, 0, plan.placement.degree("dp")).seats


def _room(plan: EnginePlan) -> dict[str, int]:
    """Requests of a step, where vLLM's own number may be too few. A power of two: of whole decode
    steps vLLM captures graphs up to this number, by eights, and one of 100 would have none of the
    batches above 96."""
    most = seats(plan)
    if most <= LEAST_SEATS[plan.device]:
        return {}
    return {"max_num_seqs": 1 << (most - 1).bit_length()}


def _prompt_budget(plan: EnginePlan) -> dict[str, object]:
    """Tokens of a step, where they are not left to vLLM. It wants room for one of each request and,
    where prompts stay whole, for the longest sequence."""
    if plan.switches.settled(choices(plan)).chunked_prefill_size == OWN and seats(plan) <= LEAST:
        return {}
    tokens = max(plan.prefill_tokens, seats(plan), *_room(plan).values())
    if plan.chunked_prefill:
        return {"max_num_batched_tokens": tokens}
    whole = max(tokens, plan.max_len)
    return {"max_num_batched_tokens": whole, "enable_chunked_prefill": False}


def value_of(text: str) -> Any:
    """The value of `--engine-arg name=text`: JSON where it is some (0.8, true, {"mode": 3}), else
    the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def environment(plan: EnginePlan) -> dict[str, str]:
    """Variables of vLLM's processes: time to start, as a plan gives it, and on a CPU room for the
    KV of every seat, in GiB, and threads that are not bound to cores, which ranks share."""
    wait = str(max(1, math.ceil(plan.timeout_s)))
    patience = {"VLLM_ENGINE_READY_TIMEOUT_S": wait, "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": wait}
    common = {
        **patience,
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        ABLATED: plan.ablation,
    }
    if plan.device != "cpu":
        return common
    token = kv_bytes_per_token(plan.placement, plan.model, 0, plan.precision)
    room = max(1, math.ceil(seats(plan) * (plan.max_len + 128) * token / 2**30))
    return {**common, "VLLM_CPU_KVCACHE_SPACE": str(room), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def across_nodes(bundles: Sequence[int], copied: str = "") -> dict[str, str]:
    """Variables of vLLM's executor `ray`: the bundles of its workers in the order of their ranks,
    and which it copies to them beside its own and those in `copied`: that of an ablation. Its first
    executor copies no other one."""
    names = dict.fromkeys([*filter(None, copied.split(",")), ABLATED])
    return {BUNDLES: ",".join(map(str, bundles)), COPIED: ",".join(names)}


# -- what is recorded


def recorded(given: Mapping[str, Any], plain: Any, config: Any) -> dict[str, str]:
    """Settings by name, as texts: those given that are not vLLM's defaults, and under "resolved"
    what vLLM made of it all.

    plain: its EngineArgs with defaults. config: its VllmConfig, once the engine is up.
    """
    changed = {name: str(value) for name, value in given.items() if value != getattr(plain, name)}
    made = {f"resolved.{name}": str(value) for name, value in resolved(config).items()}
    return changed | made


def resolved(config: Any) -> dict[str, object]:
    """What vLLM decided by itself; what a release does not have is left out."""
    places = {
        "scheduler_config": (
            "async_scheduling",
            "enable_chunked_prefill",
            "max_num_batched_tokens",
            "scheduler_cls",
        ),
        "cache_config": ("block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"),
        "compilation_config": ("mode", "cudagraph_mode", "cudagraph_capture_sizes", "pass_config"),
        "attention_config": ("backend",),
        "parallel_config": ("disable_custom_all_reduce", "distributed_executor_backend"),
    }
    found: dict[str, object] = {}
    for place, names in places.items():
        part = getattr(config, place, None)
        found |= {f"{place}.{name}": getattr(part, name) for name in names if hasattr(part, name)}
    return found
