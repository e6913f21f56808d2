"""Which plans FlashAttention-3 can run in our engine. Asked in the driver, so it imports without
torch."""

from __future__ import annotations

import importlib.util

from workers.messages import EnginePlan

PACKAGE = "flash_attn_3"
DTYPES = ("bfloat16", "float16")
LARGEST = 256  # of its head dims
INSTEAD = "use --attention triton"


def refusal(plan: EnginePlan) -> str | None:
    """None, or the first reason why it cannot run a plan, as a clause. Which GPUs there are is
    asked later."""
    dim, is_fp8 = plan.model.head_dim, plan.kv_cache_dtype == "fp8"
    step = 16 if is_fp8 else 8
    if plan.dtype not in DTYPES:
        return f"FlashAttention-3 has {' and '.join(DTYPES)}, not {plan.dtype}; {INSTEAD}"
    if dim > LARGEST or dim % step:
        cache = " with KV in FP8" if is_fp8 else ""
        return (
            f"FlashAttention-3 takes a head_dim up to {LARGEST} that is a multiple of {step}{cache}"
            f", not {dim}; {INSTEAD}"
        )
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            "FlashAttention-3 is not installed: pip install 'shard-orchestrator[fa3]', or "
            f"{INSTEAD}"
        )
    return None
