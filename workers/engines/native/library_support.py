"""Which plans the libraries of attention can run in our engine. Asked in the driver, so it imports
without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from workers.messages import EnginePlan

DTYPES = ("bfloat16", "float16")
INSTEAD = "use --attention triton"


@dataclass(frozen=True, slots=True)
class Library:
    """What one of them takes. module: what is imported. dims, fp8_dims: the head dims, with KV in
    the model's dtype and in FP8. extra: of our package, which installs it."""

    name: str
    module: str
    dims: range
    fp8_dims: range
    extra: str


LIBRARIES = {
    "fa3": Library("FlashAttention-3", "flash_attn_3", range(8, 257, 8), range(16, 257, 16), "fa3"),
    "flashinfer": Library(
        "FlashInfer", "flashinfer", range(16, 257, 16), range(128, 129), "flashinfer"
    ),
}


def refusal(plan: EnginePlan, library: Library) -> str | None:
    """None, or the first reason why a library cannot run a plan, as a clause. Which GPUs there are
    is asked later."""
    dim, is_fp8 = plan.model.head_dim, plan.kv_cache_dtype == "fp8"
    dims = library.fp8_dims if is_fp8 else library.dims
    if plan.dtype not in DTYPES:
        return f"{library.name} has {' and '.join(DTYPES)}, not {plan.dtype}; {INSTEAD}"
    if dim not in dims:
        cache = " with KV in FP8" if is_fp8 else ""
        return f"{library.name} takes a head_dim of {_said(dims)}{cache}, not {dim}; {INSTEAD}"
    if find_spec(library.module) is None:
        return (
            f"{library.name} is not installed: pip install "
            f"'shard-orchestrator[{library.extra}]', or {INSTEAD}"
        )
    return None


def _said(dims: range) -> str:
    """As "8, 16, ... 256"."""
    return str(dims[0]) if len(dims) == 1 else f"{dims[0]}, {dims[1]}, ... {dims[-1]}"
