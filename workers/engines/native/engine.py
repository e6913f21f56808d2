"""The engine `torch`: our own decoder, paged cache, continuous batching and pipeline, for every
placement of tp, pp and dp."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from strategies.memory import RESERVE_BYTES, UTILIZATION, kv_bytes_per_token, workspace_bytes
from strategies.shapes import DTYPE_BYTES
from workers.messages import Built, EnginePlan, RankReport, Work, dealt
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
    """One rank of a deployment under our own engine. most_pages: a cap on the KV pages of each
    rank, for a test in which they run short."""

    processes: Literal["per_rank", "single"] = "per_rank"

    def __init__(self, most_pages: int | None = None) -> None:
        self._most_pages = most_pages
        self._generator: Generator | None = None
        self._runner: Runner | None = None
        self._observable = True

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why this engine cannot run the plan."""
        placement, dim = plan.placement, plan.model.head_dim
        unknown = [axis for axis, _ in placement.mesh if axis not in AXES]
        if unknown:
            known = ", ".join(sorted(AXES))
            return f"it has no meaning for the mesh axis {', '.join(unknown)}; it knows {known}"
        if any(split.axis != "tp" for splits in placement.params.values() for split in splits):
            return "it cuts parameters over tp alone"
        if placement.options:
            return f"it has no option {', '.join(key for key, _ in placement.options)}"
        if plan.device == "cuda" and (dim < 16 or dim & (dim - 1)):
            return f"its GPU kernels need a head_dim that is a power of two from 16 on, not {dim}"
        ranks = [stage.pp_rank for stage in placement.stages]
        return "it runs one stage a rank" if len(set(ranks)) != len(ranks) else None

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Load weights, allocate the KV cache and capture graphs. Raises torch.OutOfMemoryError."""
        from workers.communicator import Communicator
        from workers.device import device_name, synchronize
        from workers.engines.native.cache import PAGE

        start = time.perf_counter()
        self._observable = is_observable(plan)
        communicator = Communicator(context, ablated=plan.ablation == "comm")
        decoder = load_decoder(context, plan, communicator)
        cache = make_cache(context, plan, room_for_pages(context, plan, self._most_pages))
        synchronize(context.device)
        loaded = time.perf_counter()
        self._runner = make_runner(plan, communicator, decoder, cache)
        self._generator = make_generator(plan, communicator, self._runner, cache.pages)
        synchronize(context.device)
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
        """Serve this rank's share of `work`."""
        import torch

        assert self._generator is not None, "build first"
        with torch.inference_mode():
            return self._generator.run(work if self._observable else replace(work, observe=False))

    def close(self) -> None:
        """Let go of graphs, cache and weights."""
        if self._runner is not None:
            self._runner.close()
        self._runner = self._generator = None


def is_observable(plan: EnginePlan) -> bool:
    """Whether a run may be taken apart: torch's profiler and Nsight Systems both subscribe to
    CUPTI, which serves one."""
    return plan.device == "cpu" or plan.nsys_dir is None


def load_decoder(context: RankContext, plan: EnginePlan, communicator: Communicator) -> Decoder:
    """The rank's decoder, with its weights."""
    import torch

    from workers.engines.native.kernels import kernels_for
    from workers.engines.native.model import Decoder, Loader, NamedDecoder
    from workers.weights import open_source

    source, dtype = open_source(plan.checkpoint), getattr(torch, plan.dtype)
    load = Loader(source, plan.model, plan.placement, context.rank, dtype, context.device)
    make = Decoder if plan.nsys_dir is None else NamedDecoder
    with torch.inference_mode():
        return make(load, communicator, kernels_for(context.device), plan.max_len)


def make_cache(context: RankContext, plan: EnginePlan, pages: int) -> PagedCache:
    """A KV cache in which requests can have `pages` pages."""
    import torch

    from workers.engines.native.cache import PagedCache

    device, dtype = context.device, getattr(torch, plan.dtype)
    with torch.inference_mode():
        return PagedCache.allocate(plan.model, plan.placement, context.rank, pages, dtype, device)


def make_runner(
    plan: EnginePlan, communicator: Communicator, decoder: Decoder, cache: PagedCache
) -> Runner:
    """The runner of one rank, with a captured graph for every batch size that a micro-batch can
    have."""
    import torch

    from workers.engines.native.runner import Runner, bucket_sizes
    from workers.engines.native.sampling import Sampler

    first, axis = decoder.first_logit, decoder.head_axis
    sampler = Sampler(communicator, first, axis, plan.temperature, plan.seed)
    seats = seats_of(plan)
    micro_batches = min(plan.placement.degree("pp"), seats)
    with torch.inference_mode():
        runner = Runner(decoder, cache, sampler, communicator, seats, plan.max_len)
        runner.capture(bucket_sizes(-(-seats // micro_batches)))
    return runner


def make_generator(
    plan: EnginePlan, communicator: Communicator, runner: Runner, pages: int
) -> Generator:
    """The loop of one rank; as many micro-batches are in flight as there are stages."""
    from workers.engines.native.loop import Generator
    from workers.engines.native.scheduler import Limits

    stages = plan.placement.degree("pp")
    limits = Limits(stages, pages, plan.prefill_tokens, plan.chunked_prefill)
    return Generator(runner, communicator, limits, plan.model.eos_token_ids)


def seats_of(plan: EnginePlan) -> int:
    """Requests that one replica serves at once, at most."""
    return dealt(0, plan.max_concurrency, 0, plan.placement.degree("dp")).seats


def room_for_pages(context: RankContext, plan: EnginePlan, most: int | None = None) -> int:
    """KV pages of this rank: what the memory left holds, but no more than the load can use, nor
    than `most`. The same on every rank.

    Raises torch.OutOfMemoryError where not even one request fits.
    """
    import torch

    from workers.engines.native.cache import PAGE, pages_for

    usable = seats_of(plan) * pages_for(plan.max_len)
    pages = _smallest(context, min(usable, _room(context, plan), usable if most is None else most))
    if pages < pages_for(plan.max_len):
        room = max(pages, 0) * PAGE
        raise torch.OutOfMemoryError(
            f"room for {room} tokens of KV is left; one request needs {plan.max_len}"
        )
    return pages


def _room(context: RankContext, plan: EnginePlan) -> float:
    """KV pages that fit into what is left on this GPU after weights, the workspace of a forward
    pass and the reserve; on a CPU there is no limit."""
    import torch

    from workers.engines.native.cache import PAGE

    if context.device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()  # what loading is done with is free, but not yet given back
    free, total = torch.cuda.mem_get_info(context.device)
    size, placement, rank = DTYPE_BYTES[plan.dtype], plan.placement, context.rank
    workspace = workspace_bytes(placement, plan.model, rank, size, plan.prefill_tokens)
    left = free - int(total * (1 - UTILIZATION)) - RESERVE_BYTES - workspace
    return left // (PAGE * kv_bytes_per_token(placement, plan.model, rank, size))


def _smallest(context: RankContext, pages: float) -> int:
    import torch
    import torch.distributed as dist

    if context.placement.num_ranks == 1:
        return int(pages)
    value = torch.tensor([int(pages)], device=context.device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return int(value.item())
