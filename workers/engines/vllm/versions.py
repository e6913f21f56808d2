"""What differs between the releases of vLLM that are run: 0.24 on GPUs, 0.32 on a CPU."""

from __future__ import annotations

from typing import Any


def cached_tokens(output: Any) -> int:
    """Prompt tokens that an EngineCoreOutput says were in the prefix cache. Later releases tell it
    once a request, in the statistics of its prefill; earlier ones with every output."""
    stats = getattr(output, "prefill_stats", None)
    if stats is not None:
        return int(stats.num_cached_tokens)
    return int(getattr(output, "num_cached_tokens", 0) or 0)


def kv_tokens(config: Any) -> int | None:
    """Tokens that the KV cache of a VllmConfig holds, once the engine is up. Later releases count
    them; earlier ones give blocks and their size."""
    cache = config.cache_config
    told = getattr(cache, "kv_cache_size_tokens", None)
    if told is not None:
        return int(told)
    return int(cache.num_gpu_blocks) * int(cache.block_size) if cache.num_gpu_blocks else None


def index_of(request_id: str) -> int:
    """The index of the request that an output is of. Later releases add random characters after a
    hyphen to the name that a request was given."""
    return int(request_id.partition("-")[0])
