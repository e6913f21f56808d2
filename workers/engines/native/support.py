"""Which plans our engine can run. Asked in the driver, so it imports without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain

from strategies.peer_sums import RANKS, kind_for
from strategies.placement import EMBEDDING, Placement, Split
from strategies.shapes import HOPPER, ModelShape
from workers.engines.native.fp8_support import refusal as fp8
from workers.messages import EnginePlan, Switches

AXES = ("dp", "pp", "tp")
# The rope types of `native.rope`.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class Library:
    """One that attends. module: what is imported. dims, fp8_dims: the head dims that it takes, with
    KV in the model's dtype and in FP8. extra: of our package, which installs it."""

    name: str
    module: str
    dims: Sequence[int]
    fp8_dims: Sequence[int]
    extra: str


TRITON_DIMS = tuple(16 << power for power in range(5))
# By the kind of `Switches.attention`. Under "fa3-prefill" a decode step is Triton's.
LIBRARIES = {
    "fa3": Library("FlashAttention-3", "flash_attn_3", range(8, 257, 8), range(16, 257, 16), "fa3"),
    "fa3-prefill": Library("FlashAttention-3", "flash_attn_3", TRITON_DIMS, TRITON_DIMS, "fa3"),
    "flashinfer": Library(
        "FlashInfer", "flashinfer", range(16, 257, 16), range(128, 129), "flashinfer"
    ),
}
LIBRARY_DTYPES = ("bfloat16", "float16")
# Kinds of `Switches.attention` in which the host never waits for the device.
WAITLESS = ("triton", *LIBRARIES)
# Kinds of `Switches.allreduce` that go through memory of GPUs.
SHARING = ("one-shot", "two-shot")
LAYER = re.compile(r"model\.layers\.\d+\.")


def choices(plan: EnginePlan) -> dict[str, tuple[str, ...]]:
    """The switches of this engine and the values of each, that which it has by itself first. Its
    kernels in Triton, and graphs, are of GPUs."""
    on_gpu = plan.device == "cuda"
    hopper = on_gpu and (plan.capability or (0, 0))[0] == HOPPER
    either = ("on", "off") if on_gpu else ("off",)
    return {
        "attention": ("triton", "sdpa", "eager", *LIBRARIES) if on_gpu else ("sdpa", "eager"),
        "cuda_graphs": either,
        "fusion": either,
        "batching": ("continuous", "static"),
        "chunked_prefill_size": (str(plan.prefill_tokens), "off"),
        "allreduce": _ways_to_sum(plan) if on_gpu else ("shm", "gloo"),
        "overlap": ("off", "on"),
        "products": ("triton", "cublas") if hopper else ("cublas",),
        "pdl": either if hopper else ("off",),
    }


def _ways_to_sum(plan: EnginePlan) -> tuple[str, ...]:
    """Through memory of the GPUs where NVLink joins them, unless there are runs in which NCCL is to
    go without it."""
    ranks = plan.placement.degree("tp")
    shares = plan.linked and ranks in RANKS and "p2p" not in (plan.ablation, *plan.ablations)
    first = kind_for(ranks) if shares else "nccl"
    return (first, *(kind for kind in ("nccl", *SHARING) if kind != first))


def switches_of(plan: EnginePlan) -> Switches:
    """The switches of a plan, none of them left open."""
    return plan.switches.settled(choices(plan))


def refusal(plan: EnginePlan) -> str | None:
    """None, or the first reason why this engine cannot run the plan, as a clause."""
    checks = (_axes, _options, _attends, _rope, _window, _stages, _over_tp, _cuts, _sums, fp8)
    found = (check(plan) for check in checks)
    return next((reason for reason in found if reason is not None), None)


def _axes(plan: EnginePlan) -> str | None:
    unknown = [axis for axis, _ in plan.placement.mesh if axis not in AXES]
    if not unknown:
        return None
    return f"it has no meaning for the mesh axis {', '.join(unknown)}; it knows {', '.join(AXES)}"


def _options(plan: EnginePlan) -> str | None:
    options = ", ".join(key for key, _ in plan.placement.options)
    return f"it has no option {options}" if options else None


def _attends(plan: EnginePlan) -> str | None:
    dim, kind = plan.model.head_dim, switches_of(plan).attention
    if dim % 2:
        return f"it rotates pairs of elements, and the head_dim {dim} is odd"
    if kind in LIBRARIES:
        return _of_library(plan, kind)
    if kind != "triton" or (dim >= 16 and dim & (dim - 1) == 0):
        return None
    return (
        f"its attention in Triton needs a head_dim that is a power of two from 16 on, not {dim}; "
        "use --attention sdpa"
    )


def _of_library(plan: EnginePlan, kind: str) -> str | None:
    """None, or the first reason why a library cannot run a plan, as a clause. Which GPUs there are
    is asked later."""
    library, dim, is_fp8 = LIBRARIES[kind], plan.model.head_dim, plan.kv_cache_dtype == "fp8"
    dims, triton = library.fp8_dims if is_fp8 else library.dims, "use --attention triton"
    if plan.dtype not in LIBRARY_DTYPES:
        return f"{library.name} has {' and '.join(LIBRARY_DTYPES)}, not {plan.dtype}; {triton}"
    if dim not in dims:
        cache = " with KV in FP8" if is_fp8 else ""
        return (
            f"{library.name} takes a head_dim of {_listed(dims)}{cache}, not {dim}; use "
            "--attention sdpa"
        )
    if find_spec(library.module) is None:
        install = f"pip install 'shard-orchestrator[{library.extra}]'"
        return f"{library.name} is not installed: {install}, or {triton}"
    return None


def _listed(dims: Sequence[int]) -> str:
    """As "8, 16, ... 256"."""
    return str(dims[0]) if len(dims) == 1 else f"{dims[0]}, {dims[1]}, ... {dims[-1]}"


def _rope(plan: EnginePlan) -> str | None:
    """Beyond the length that a model was made for, the frequencies of dynamic rope depend in
    Transformers on the longest request of a batch."""
    model = plan.model
    kind = dict(model.rope_scaling).get("rope_type", "default")
    if kind not in ROPE_TYPES:
        return f"it has no rope_type {kind}; it has {', '.join(ROPE_TYPES)}"
    if kind != "dynamic" or plan.max_len <= model.max_positions:
        return None
    return (
        f"it runs the rope_type dynamic up to max_position_embeddings, {model.max_positions} "
        f"tokens, and a request has {plan.max_len}; use shorter lengths"
    )


def _window(plan: EnginePlan) -> str | None:
    model = plan.model
    if model.sliding_window is not None and model.sliding_window < 1:
        return f"a sliding_window has at least 1 token, not {model.sliding_window}"
    if len(model.sliding_layers) in (0, model.num_layers):
        return None
    return f"sliding_layers names {len(model.sliding_layers)} of {model.num_layers} layers"


def _stages(plan: EnginePlan) -> str | None:
    stages = sorted(plan.placement.stages, key=lambda stage: stage.pp_rank)
    ranks = [stage.pp_rank for stage in stages]
    if len(set(ranks)) != len(ranks):
        return "it runs one stage a rank"
    if not all(stage.layers for stage in stages):
        return "each of its stages needs a layer"
    if [*chain.from_iterable(stage.layers for stage in stages)] != [*range(plan.model.num_layers)]:
        return "it runs the layers in order, the first ones on pp_rank 0"
    if not (stages[0].embed and stages[-1].head):
        return "it has the embedding on pp_rank 0 and the head on the last one"
    return None


def _over_tp(plan: EnginePlan) -> str | None:
    cuts = chain.from_iterable(plan.placement.params.values())
    return None if all(cut.axis == "tp" for cut in cuts) else "it cuts parameters over tp alone"


def _cuts(plan: EnginePlan) -> str | None:
    """Why the cuts under tp cannot be run; None if they can. The engine derives its sums from the
    cuts of layer 0, so only some cuts go together."""
    placement, model = plan.placement, plan.model
    if placement.degree("tp") == 1:
        return None
    first, odd = _of_layers(placement, model)
    if odd is not None:
        return f"it needs all layers cut alike, and {odd} is cut unlike that of layer 0"
    if not _belong(first, _attention(model), model.head_dim):
        return (
            "it needs q_proj, k_proj and v_proj cut at dim 0 and o_proj.weight at dim 1, all in "
            f"units of the head_dim {model.head_dim}, or all four whole"
        )
    mlp = {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1}
    if not _belong(first, mlp):
        return (
            "it needs gate_proj and up_proj cut at dim 0 and down_proj at dim 1, all alike, or all "
            "three whole"
        )
    if cut := _cut_alone(placement, first, {*_attention(model), *mlp}):
        return f"it needs {cut} whole"
    ends = (placement.splits(name) for name in (EMBEDDING, model.head_name))
    by_rows = all(len(cuts) < 2 and all(cut.dim == 0 for cut in cuts) for cuts in ends)
    return None if by_rows else "it cuts embedding and head at dim 0, once"


def _sums(plan: EnginePlan) -> str | None:
    """Why so many ranks of tp cannot sum through memory of GPUs; None if they can. Where they are
    is known when they start."""
    kind, ranks = switches_of(plan).allreduce, plan.placement.degree("tp")
    if kind not in SHARING or ranks == 1:
        return None
    if ranks not in RANKS:
        degrees = ", ".join(f"tp{one}" for one in RANKS)
        return f"--allreduce {kind} is for {degrees}, not tp{ranks}; use nccl"
    return None


def _cut_alone(
    placement: Placement, first: Mapping[str, tuple[Split, ...]], groups: set[str]
) -> str | None:
    """The first parameter that is cut and belongs to none of the groups: a norm, or the bias of a
    sum."""
    norm = "model.norm.weight"
    found = {**first, norm: placement.splits(norm)}
    return next((name for name, cuts in found.items() if cuts and name not in groups), None)


def _of_layers(
    placement: Placement, model: ModelShape
) -> tuple[dict[str, tuple[Split, ...]], str | None]:
    """The cuts of layer 0 by the suffix of the parameter, and the first parameter of another layer
    that has other ones, if any has."""
    first: dict[str, tuple[Split, ...]] = {}
    for name, _ in model.parameters():
        at = LAYER.match(name)
        if at and first.setdefault(name[at.end() :], cuts := placement.splits(name)) != cuts:
            return first, name
    return first, None


def _attention(model: ModelShape) -> dict[str, int]:
    """Parameters of attention that are cut together, each with the dim."""
    names = {name for name, _ in model.layer_parameters()}
    inputs = (f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias"))
    return {name: 0 for name in inputs if name in names} | {"self_attn.o_proj.weight": 1}


def _belong(
    cuts: Mapping[str, tuple[Split, ...]], dims: Mapping[str, int], unit: int | None = None
) -> bool:
    """Whether the parameters `dims` are all whole, or each is cut once, at its dim and otherwise
    alike; with a `unit`, in that one and in equal parts."""
    found = {name: cuts[name] for name in dims}
    if not any(found.values()):
        return True
    if any(len(splits) != 1 or splits[0].dim != dims[name] for name, splits in found.items()):
        return False
    alike = {replace(splits[0], dim=0) for splits in found.values()}
    return len(alike) == 1 and (unit is None or _in_units(alike, unit))


def _in_units(splits: Iterable[Split], unit: int) -> bool:
    return all(split.unit == unit and split.parts is None for split in splits)
