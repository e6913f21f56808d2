"""The engine `vllm`: its own executor, scheduler and kernels, one engine core a replica.

Everything that vLLM decides stays as it decides it, but for what an option of ours says and for its
prefix cache, which is emptied before every run. `settings` says what is given to it, `run` how a
run is made, `worker` what is in its processes, `window` what its steps consist of.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from strategies.entries import entry_points
from strategies.memory import weight_bytes
from workers.engines.vllm.ablation import ABLATED
from workers.engines.vllm.dummy_model import dummy_model
from workers.engines.vllm.settings import (
    COPIED,
    across_nodes,
    arguments,
    choices,
    environment,
    recorded,
    refusal,
)
from workers.engines.vllm.versions import kv_tokens
from workers.engines.vllm.window import Seen, Window
from workers.engines.vllm.worker import ERRORS, OWNER
from workers.messages import Built, EnginePlan, RankReport, Request, Work
from workers.versions import versions

if TYPE_CHECKING:
    from workers.rank import RankContext

PLUGINS = "vllm.general_plugins"
TRACES = "traces"  # the folder of vLLM's profiler, within ours
ELSEWHERE = "on several nodes, vLLM's profiler leaves each trace on the node of its worker"
NO_ROOM = "No available memory for the cache blocks"


class VllmEngine:
    """vLLM under every layout of tp, pp and dp. One process a replica, which starts vLLM's own."""

    processes: Literal["per_rank", "per_replica", "single"] = "per_replica"
    takes_arguments = True
    lets_wait = True
    has_fp8 = True
    spans_nodes = ("cuda",)  # vLLM's Ray executor knows no CPU

    def __init__(self) -> None:
        self._context: RankContext | None = None
        self._plan: EnginePlan | None = None
        self._engine: Any = None
        self._folder: Path | None = None

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why vLLM cannot run the plan."""
        return refusal(plan)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """Its switches, and the values of each."""
        return choices(plan)

    def build(self, context: RankContext, plan: EnginePlan) -> list[Built]:
        """Start vLLM. `load_s` is all of its start, as it does not tell the parts. Raises what the
        first of its processes to fail has logged."""
        from workers.engines.vllm.run import check_clocks

        start = time.perf_counter()
        check_clocks()
        check_plugin()
        self._context, self._plan = context, plan
        self._folder = Path(tempfile.mkdtemp(prefix="orchestrator-vllm-"))
        variables = environment(plan)
        own = {OWNER: str(os.getpid()), ERRORS: str(self._folder / "errors")}
        if plan.spans_nodes:
            own |= across_nodes(context.bundles, os.environ.get(COPIED, ""))
        os.environ.update(variables | own)
        try:
            settings = self._start(plan)
            told = self._engine.collective_rpc("orchestrator_built")
        except Exception as error:
            raise self._cause(error) from error
        return self._built(time.perf_counter() - start, told, settings | variables)

    def run(self, work: Work) -> list[RankReport]:
        """Serve this replica's share. An observed run is served as usual, with vLLM's profiler
        around it where its traces are on this node."""
        from workers.engines.vllm.run import serve

        assert self._context is not None, "build first"
        replica, replicas = self._context.at("dp"), self._context.placement.degree("dp")
        share, window = work.share(replica, replicas), self._window(work)
        params, progress = self._params(work), self._context.progress
        try:
            with window.watching() if window else nullcontext():
                watch = serve(self._engine, share, params, progress, work.is_open)
            told = self._engine.collective_rpc("orchestrator_end")
        except Exception as error:
            raise self._cause(error) from error
        reports = self._reports(watch, share, told)
        return self._observed(reports, window) if work.observe else reports

    def _window(self, work: Work) -> Window | None:
        assert self._plan is not None
        if not work.observe or self._plan.spans_nodes:
            return None
        return Window.of(self._engine, self._folder_of_own() / TRACES, self._plan.timeout_s)

    def _observed(self, reports: Sequence[RankReport], window: Window | None) -> list[RankReport]:
        """The reports with the spans of each rank, if it took a step at all."""
        assert self._plan is not None
        seen = [Seen(None, ELSEWHERE)] * len(reports)
        if window is not None:
            seen = window.seen(self._ranks(), self._plan.placement, self._plan.device)
        return [
            replace(
                report, spans=one.spans, unobserved=one.reason if report.steps.num_rows else None
            )
            for report, one in zip(reports, seen, strict=True)
        ]

    def close(self) -> None:
        """End vLLM's processes."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._engine = self._folder = self._context = None

    # -- starting

    def _start(self, plan: EnginePlan) -> dict[str, str]:
        """Start vLLM's engine, whose core is a process of its own. Returns its settings."""
        from vllm import envs
        from vllm.config import ProfilerConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        model = plan.checkpoint or dummy_model(plan.model, Path(envs.VLLM_CACHE_ROOT))
        given = arguments(plan, str(model))
        traces = str(self._folder_of_own() / TRACES)
        profiler = ProfilerConfig(**given["profiler_config"], torch_profiler_dir=traces)
        args = EngineArgs(**{**given, "profiler_config": profiler})
        plain = EngineArgs(model=given["model"])
        serving = UsageContext.OPENAI_API_SERVER  # its defaults are those that people meet
        self._engine = LLMEngine.from_engine_args(args, serving, enable_multiprocessing=True)
        return recorded(given, plain, self._engine.vllm_config)

    def _folder_of_own(self) -> Path:
        assert self._folder is not None, "build first"
        return self._folder

    def _cause(self, error: Exception) -> Exception:
        """What the first of vLLM's processes to fail has logged; `error` itself where none has."""
        log = self._folder_of_own() / "errors"
        if not log.is_file() or not (lines := log.read_text("utf-8").splitlines()):
            return error
        first = json.loads(lines[0])
        kind, message = first["type"], first["message"]
        return failure(kind, message)

    # -- what is reported

    def _ranks(self) -> list[int]:
        """The ranks of this replica, in vLLM's order: tp innermost, then pp."""
        assert self._context is not None
        placement = self._context.placement
        size = placement.degree("tp") * placement.degree("pp")
        return list(range(self._context.rank, self._context.rank + size))

    def _built(self, took: float, told: Sequence[Any], settings: dict[str, str]) -> list[Built]:
        from workers.device import device_name

        assert self._context is not None
        assert self._plan is not None
        name, room = device_name(self._context.device), kv_tokens(self._engine.vllm_config)
        plan = self._plan
        check_ablation(self._ranks(), [one["left_out"] for one in told], plan.ablation)
        return [
            Built(
                rank,
                took,
                None,
                held(plan, rank, one["parameter_bytes"]),
                room,
                name,
                versions(),
                settings,
            )
            for rank, one in zip(self._ranks(), told, strict=True)
        ]

    def _reports(self, watch: Any, share: Work, told: Sequence[Any]) -> list[RankReport]:
        """One report a rank. The first has the requests."""
        from workers.engines.vllm.run import requests_table, steps_table

        assert self._context is not None
        requests = requests_table(watch, share, self._context.at("dp"))
        return [
            RankReport(
                rank=rank,
                requests=requests if rank == self._context.rank else None,
                steps=steps_table(watch, rank, one["steps"]),
                collectives=None,
                peak_memory_bytes=one["peak_memory_bytes"],
                began_s=watch.began_s,
            )
            for rank, one in zip(self._ranks(), told, strict=True)
        ]

    def _params(self, work: Work) -> Any:
        """Makes vLLM's SamplingParams of a request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        assert self._plan is not None
        plan = self._plan
        stops = [] if work.ignore_eos else list(plan.model.eos_token_ids)

        def params(request: Request) -> Any:
            return SamplingParams(
                temperature=plan.temperature,
                max_tokens=request.output_len,
                ignore_eos=work.ignore_eos,
                stop_token_ids=stops,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        return params


def held(plan: EnginePlan, rank: int, told: int) -> int:
    """Bytes of weights of a rank. On a CPU vLLM packs them out of sight of the model: then those of
    the layout."""
    if plan.device != "cpu":
        return told
    return weight_bytes(plan.placement, plan.model, rank, plan.precision)


class VllmFailed(Exception):
    """A process of vLLM failed; the message has the type and the text of its exception."""


class OutOfMemoryError(VllmFailed):
    """A process of vLLM had no room; known to the driver by this name."""


def failure(kind: str, message: str) -> VllmFailed:
    """The exception for what a process of vLLM has logged. What a worker of Ray's has raised is in
    there as "RayTaskError(ITS TYPE)", and its text is the end of a traceback."""
    if kind.startswith("RayTaskError("):
        kind = kind.removeprefix("RayTaskError(").removesuffix(")")
        message = message.rpartition(f"{kind}: ")[2]
    full = kind == "OutOfMemoryError" or NO_ROOM in message
    return (OutOfMemoryError if full else VllmFailed)(f"vLLM: {kind}: {message}")


def check_plugin() -> None:
    """Raise VllmFailed where vLLM's processes would not find ours: they would outlive this one."""
    if not entry_points(group=PLUGINS, name="orchestrator"):
        raise VllmFailed(
            f"the entry point orchestrator of {PLUGINS} is not installed, so vLLM's processes "
            "would outlive a killed worker; install this project with pip"
        )


def check_ablation(ranks: Sequence[int], left_out: Sequence[str], ablation: str) -> None:
    """Raise VllmFailed where a rank does not leave out what `ablation` says, or leaves out more."""
    asked = "comm" if ablation == "comm" else "none"
    for rank, found in zip(ranks, left_out, strict=True):
        if found != asked:
            raise VllmFailed(
                f"the worker of rank {rank} leaves out {found}, and --ablate asks for {asked}: the "
                f"entry point orchestrator of {PLUGINS} did not run in it, or without the variable "
                f"{ABLATED}; install this project on its node, and look at VLLM_PLUGINS there"
            )
