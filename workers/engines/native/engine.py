"""The engine `torch`: our own decoder, paged cache, continuous batching and pipeline, for every
placement of tp, pp and dp."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from strategies.memory import RESERVE_BYTES, UTILIZATION, kv_bytes_per_token, workspace_bytes
from strategies.shapes import DTYPE_BYTES
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.versions import versions

if TYPE_CHECKING:
    from workers.communicator import Communicator
    from workers.engines.native.cache import PagedCache
    from workers.engines.native.loop import Generator
    from workers.engines.native.model import Decoder
    from workers.engines.native.runner import Runner
    from workers.rank import RankContext

AXES = {"tp", "pp", "dp"}


class TorchEngine:
    """One rank of a deployment under our own engine."""

    processes: Literal["per_rank", "single"] = "per_rank"

    def __init__(self) -> None:
        self._generator: Generator | None = None
        self._runner: Runner | None = None
        self._observable = True

    def supports(self, plan: EnginePlan) -> str | None:
        unknown = [axis for axis, _ in plan.placement.mesh if axis not in AXES]
        if unknown:
            return (
                f"it has no meaning for the mesh axis {', '.join(unknown)}; it knows "
                f"{', '.join(sorted(AXES))}"
            )
        if any(split.axis != "tp" for splits in plan.placement.params.values() for split in splits):
            return "it cuts parameters over tp alone"
        if plan.placement.options:
            return f"it has no option {', '.join(key for key, _ in plan.placement.options)}"
        dim = plan.model.head_dim
        if plan.device == "cuda" and (dim < 16 or dim & (dim - 1)):
            return f"its GPU kernels need a head_dim that is a power of two from 16 on, not {dim}"
        ranks = [stage.pp_rank for stage in plan.placement.stages]
        return "it runs one stage a rank" if len(set(ranks)) != len(ranks) else None

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        from workers.communicator import Communicator
        from workers.device import device_name
        from workers.engines.native.cache import PAGE
        from workers.engines.native.loop import Generator

        start = time.perf_counter()
        self._observable = is_observable(plan)
        communicator = Communicator(context, ablated=plan.ablation == "comm")
        decoder, cache = load_decoder(context, plan, communicator)
        _synchronize(context)
        loaded = time.perf_counter()
        self._runner = make_runner(plan, communicator, decoder, cache)
        self._generator = Generator(
            self._runner,
            communicator,
            plan.placement.degree("pp"),
            cache.pages,
            plan.prefill_tokens,
            plan.chunked_prefill,
            plan.model.eos_token_ids,
        )
        _synchronize(context)
        return Built(
            rank=context.rank,
            load_s=loaded - start,
            capture_s=time.perf_counter() - loaded,
            weight_bytes=decoder.weight_bytes,
            kv_tokens=cache.pages * PAGE,
            device_name=device_name(context.device),
            versions=versions(),
        )

    def run(self, work: Work) -> RankReport:
        import torch

        assert self._generator is not None, "build first"
        with torch.inference_mode():
            return self._generator.run(work if self._observable else replace(work, observe=False))

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
        self._runner = self._generator = None


def is_observable(plan: EnginePlan) -> bool:
    """Whether a run may be taken apart: torch's profiler and Nsight Systems both subscribe to
    CUPTI, which serves one."""
    return plan.device == "cpu" or plan.nsys_dir is None


def load_decoder(
    context: RankContext, plan: EnginePlan, communicator: Communicator, pages: int | None = None
) -> tuple[Decoder, PagedCache]:
    """The rank's decoder and a cache of `pages` pages; None: as many as there is room for once the
    weights are in."""
    import torch

    from workers.engines.native.cache import PagedCache
    from workers.engines.native.kernels import kernels_for
    from workers.engines.native.model import Decoder, Loader, NamedDecoder
    from workers.weights import open_source

    dtype = getattr(torch, plan.dtype)
    load = Loader(
        open_source(plan.checkpoint),
        plan.model,
        plan.placement,
        context.rank,
        dtype,
        context.device,
    )
    make = Decoder if plan.nsys_dir is None else NamedDecoder
    with torch.inference_mode():
        decoder = make(
            plan.model,
            plan.placement,
            context.rank,
            communicator,
            kernels_for(context.device),
            load,
            plan.max_len,
            context.device,
        )
        if pages is None:
            pages = room_for_pages(context, plan)
        cache = PagedCache.allocate(
            plan.model, plan.placement, context.rank, pages, dtype, context.device
        )
    return decoder, cache


def make_runner(
    plan: EnginePlan, communicator: Communicator, decoder: Decoder, cache: PagedCache
) -> Runner:
    """The runner of one rank, with a captured graph for every batch size that a micro_batch can
    have."""
    import torch

    from workers.engines.native.runner import Runner, bucket_sizes
    from workers.engines.native.sampling import Sampler

    device, dtype = communicator.context.device, getattr(torch, plan.dtype)
    sampler = Sampler(
        communicator, decoder.first_logit, decoder.head_axis, plan.temperature, plan.seed
    )
    slots = slots_of(plan)
    with torch.inference_mode():
        runner = Runner(
            decoder,
            cache,
            sampler,
            communicator,
            slots,
            plan.max_len,
            plan.model.hidden_size,
            dtype,
            device,
        )
        runner.capture(bucket_sizes(-(-slots // min(plan.placement.degree("pp"), slots))))
    return runner


def slots_of(plan: EnginePlan) -> int:
    """Requests that one replica serves at once."""
    return -(-plan.max_concurrency // plan.placement.degree("dp"))


def room_for_pages(context: RankContext, plan: EnginePlan) -> int:
    """Pages of KV per rank: what the memory left holds, but no more than the load can use; alike on
    every rank.

    Raises torch.OutOfMemoryError where not even one request fits.
    """
    import torch

    from workers.engines.native.cache import PAGE, pages_for

    pages = slots_of(plan) * pages_for(plan.max_len)
    if plan.kv_tokens is not None:
        pages = min(pages, plan.kv_tokens // PAGE)
    if context.device.type == "cuda":
        per_token = kv_bytes_per_token(
            plan.placement, plan.model, context.rank, DTYPE_BYTES[plan.dtype]
        )
        pages = min(pages, _room(context, plan) // (PAGE * per_token))
    pages = _smallest(context, pages)
    if pages < pages_for(plan.max_len):
        raise torch.OutOfMemoryError(
            f"room for {max(pages, 0) * PAGE} tokens of KV is left; one request needs "
            f"{plan.max_len}"
        )
    return pages


def _room(context: RankContext, plan: EnginePlan) -> int:
    """Bytes left for KV on this GPU after weights, the workspace of a forward pass and the
    reserve."""
    import torch

    torch.cuda.empty_cache()  # what loading was done with is free, but not yet given back
    free, total = torch.cuda.mem_get_info(context.device)
    workspace = workspace_bytes(
        plan.placement, plan.model, context.rank, DTYPE_BYTES[plan.dtype], plan.prefill_tokens
    )
    return free - int(total * (1 - UTILIZATION)) - RESERVE_BYTES - workspace


def _smallest(context: RankContext, pages: int) -> int:
    import torch
    import torch.distributed as dist

    if context.placement.num_ranks == 1:
        return pages
    value = torch.tensor([pages], device=context.device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return int(value.item())


def _synchronize(context: RankContext) -> None:
    import torch

    if context.device.type == "cuda":
        torch.cuda.synchronize()
