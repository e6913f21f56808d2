"""The engine `torch`: our own decoder, paged cache, continuous batching and pipeline, for every
placement of tp, pp and dp.

`TorchEngine` answers the driver and builds; `generator.Generator` is its loop. The module imports
without torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from workers.device import device_name, synchronize
from workers.engines.native.generator import Generator
from workers.engines.native.pages import PAGE
from workers.engines.native.scheduler import Limits
from workers.engines.native.support import choices, refusal, switches_of
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.versions import versions

if TYPE_CHECKING:
    from workers.engines.native.runner import Runner
    from workers.rank import RankContext


class TorchEngine:
    """Every placement of tp, pp and dp, with paged KV, continuous batching and CUDA graphs.

    One rank of a deployment. most_pages: a cap on the KV pages of each rank, for a test in which
    they run short.
    """

    processes: Literal["per_rank", "single"] = "per_rank"
    lets_wait = True
    has_fp8 = True
    counts_kernels = True

    def __init__(self, most_pages: int | None = None) -> None:
        self._most_pages = most_pages
        self._generator: Generator | None = None
        self._runner: Runner | None = None
        self._observable = True

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why this engine cannot run the plan."""
        return refusal(plan)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """Its switches, and the values of each."""
        return choices(plan)

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Load weights, allocate the KV cache and capture graphs. Raises torch.OutOfMemoryError."""
        from workers.engines.native import build

        start = time.perf_counter()
        self._observable = is_observable(plan)
        communicator = build.make_communicator(context, plan)
        decoder = build.load_decoder(context, plan, communicator)
        pages = build.room_for_pages(context, plan, self._most_pages)
        cache = build.make_cache(context, plan, pages)
        synchronize(context.device)
        loaded = time.perf_counter()
        self._runner = build.make_runner(plan, communicator, decoder, cache)
        stages = plan.placement.degree("pp")
        static = switches_of(plan).batching == "static"
        limits = Limits(stages, pages, plan.prefill_tokens, plan.chunked_prefill, static)
        eos = plan.model.eos_token_ids
        self._generator = Generator(self._runner, communicator, limits, eos)
        synchronize(context.device)
        return Built(
            rank=context.rank,
            load_s=loaded - start,
            capture_s=time.perf_counter() - loaded,
            weight_bytes=decoder.weight_bytes,
            kv_tokens=pages * PAGE,
            device_name=device_name(context.device),
            versions=versions(),
            settings={"collectives": communicator.backend.name} if context.groups else {},
        )

    def run(self, work: Work) -> RankReport:
        """Serve this rank's share of `work`."""
        import torch

        assert self._generator is not None, "build first"
        with torch.inference_mode():
            return self._generator.run(work if self._observable else replace(work, observe=False))

    def close(self) -> None:
        """Free graphs, cache and weights."""
        if self._runner is not None:
            self._runner.close()
        self._runner = self._generator = None


def is_observable(plan: EnginePlan) -> bool:
    """Whether a run may be taken apart: torch's profiler and Nsight Systems both subscribe to
    CUPTI, which serves one."""
    return plan.device == "cpu" or plan.nsys_dir is None
