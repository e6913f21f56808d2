"""One pool of rank processes for the whole session, and small checkpoints saved by Transformers."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_engine import register

from strategies import Load, ModelShape, Topology, plan_layout
from workers.messages import Built, EnginePlan, RankReport, Request, Work

if TYPE_CHECKING:
    from workers.engines.native.engine import TorchEngine

POOL_SIZE = 4
SLOW_TO_IMPORT = ["torch.distributed.tensor", "transformers.models.llama.modeling_llama"]
SLOW_TO_IMPORT += ["torch._inductor.compile_fx"]  # of compiled layers
SLOW_TO_IMPORT += ["deepspeed"]  # passed over where it is not installed


def small_cache() -> TorchEngine:
    """The engine 'small' of the pool: our own with two KV pages a rank."""
    from workers.engines.native.engine import TorchEngine

    return TorchEngine(most_pages=2)


def _serve(connection: Connection, site: str) -> None:
    from many_plans import Rank

    sys.path.append(site)
    worker = Rank()
    _freeze()
    while True:
        method, args = connection.recv()
        if method == "stop":
            return
        try:
            connection.send(("ok", getattr(worker, method)(*args)))
        except Exception as error:
            connection.send(("error", f"{type(error).__name__}: {error}"))


def _freeze() -> None:
    """Have the collector never look through torch's modules: engines that collect as they close
    would take longer for that than for a small run. A run would unfreeze them at its end."""
    from workers import actor
    from workers.engines.training import engine

    gc.freeze()
    actor.uncollected = engine.uncollected = contextlib.nullcontext


@dataclass
class Pool:
    """Processes that each hold a `Worker`, as a Ray actor would."""

    connections: list[Connection]

    def call(self, method: str, args: list[tuple[Any, ...]]) -> list[Any]:
        """Call `method` on the first len(args) workers at once."""
        used = self.connections[: len(args)]
        for connection, arguments in zip(used, args, strict=True):
            connection.send((method, arguments))
        answers = [connection.recv() for connection in used]
        for status, value in answers:
            if status == "error":
                raise RuntimeError(value)
        return [value for _, value in answers]

    def build(self, engine_plan: EnginePlan, engine: str = "torch") -> list[Built]:
        ranks = engine_plan.placement.num_ranks
        self.call("assign", [(rank,) for rank in range(ranks)])
        address = self.call("open_store", [("127.0.0.1",)])[0]
        return self.call("build", [(engine, engine_plan, address)] * ranks)

    def serve(
        self, engine_plan: EnginePlan, *works: Work, engine: str = "torch", counts: bool = True
    ) -> list[list[RankReport]]:
        """Build, serve every work, close; the reports of all ranks for each work. counts: whether a
        training takes the steps before, in which what it communicates is counted."""
        ranks = engine_plan.placement.num_ranks
        try:
            self.build(engine_plan, engine)
            if not counts:
                self.call("count_nothing", [()] * ranks)
            return [self.call("run", [(work,)] * ranks) for work in works]
        finally:
            self.call("close", [()] * ranks)

    def serve_many(
        self, jobs: list[tuple[EnginePlan, Work]], engine: str = "torch"
    ) -> list[list[RankReport] | str]:
        """Serve plans of one mesh, one after another in one set of process groups: for each the
        reports of all ranks, or what went wrong."""
        ranks = jobs[0][0].placement.num_ranks
        self.call("assign", [(rank,) for rank in range(ranks)])
        address = self.call("open_store", [("127.0.0.1",)])[0]
        by_rank = self.call("serve_many", [(engine, jobs, address)] * ranks)
        return [
            next((one for one in found if isinstance(one, str)), list(found))
            for found in zip(*by_rank, strict=True)
        ]


def forking() -> ForkServerContext:
    """Starts processes that have imported already what takes seconds: they are forked from one that
    did, and that has no threads and no process groups."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_TO_IMPORT)
    return context


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    site = register(tmp_path_factory.mktemp("engines"), "small", "ranks:small_cache")
    register(site, "stuck", "stuck_trainer:StuckTrainer", "orchestrator.trainers")
    context = forking()
    pairs = [context.Pipe() for _ in range(POOL_SIZE)]
    processes = [
        context.Process(target=_serve, args=(child, str(site)), daemon=True) for _, child in pairs
    ]
    for process, (_, child) in zip(processes, pairs, strict=True):
        process.start()
        child.close()  # so that a process that dies ends the wait for its answer
    yield Pool([parent for parent, _ in pairs])
    for (parent, _), process in zip(pairs, processes, strict=True):
        parent.send(("stop", ()))
        process.join(10)


@pytest.fixture(scope="session")
def calibrated(pool: Pool) -> list[list[RankReport]]:
    """What four ranks report of a quick calibration, part by part."""
    from orchestrator.node.calibrate import calibration_plan
    from workers.engines.calibration_parts import Part, parts

    work = [Part((), 1, part=part) for part in parts(POOL_SIZE)]
    plan = calibration_plan("cpu", POOL_SIZE, quick=True)
    return pool.serve(plan, *work, engine="calibration")


def tokens(reports: list[RankReport]) -> dict[int, list[int]]:
    """Request index -> the tokens that were made for it."""
    rows = [
        row
        for report in reports
        if report.requests is not None
        for row in report.requests.to_pylist()
    ]
    return {
        row["request_index"]: row["output_token_ids"]
        for row in sorted(rows, key=lambda r: r["request_index"])
    }


def engine_plan(
    layout: str, shape: ModelShape, checkpoint: Path | None, work: Work, **changes: Any
) -> EnginePlan:
    """A float32 CPU plan that serves `work` under `layout`."""
    max_len = max(len(request.prompt) + request.output_len for request in work.requests)
    load = Load(max_len - 1, 1, work.max_concurrency)
    fields: dict[str, Any] = {
        "model": shape,
        "layout": layout,
        "placement": plan_layout(layout, shape, load, Topology.uniform(POOL_SIZE)).placement,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "dtype": "float32",
        "device": "cpu",
        "max_concurrency": work.max_concurrency,
        "max_len": max_len,
        "prefill_tokens": 16,
        "timeout_s": 60.0,
    }
    if changes.get("device") == "cuda":
        import torch

        fields["capability"] = (
            torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        )
    return EnginePlan(**{**fields, **changes})


def read_shape(folder: Path) -> ModelShape:
    return ModelShape.from_config(json.loads((folder / "config.json").read_text()), folder.name)


BASE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "eos_token_id": 7,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    # Grouped-query attention with fewer KV heads than tp4 has ranks; a single file.
    "Llama": {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE},
    # Multi-head attention, tied embeddings, a vocabulary that does not divide; several files with
    # an index.
    "Mistral": {
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "vocab_size": 131,
    },
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 4, "head_dim": 24, "tie_word_embeddings": True},
}
SHARDED = {"Mistral", "Qwen2"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> a folder saved by Transformers; large random weights, so that greedy tokens are no
    ties."""
    return functools.cache(lambda family: save_checkpoint(family, tmp_path_factory.mktemp(family)))


def save_checkpoint(family: str, folder: Path) -> Path:
    import torch
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**{**BASE, **FAMILIES[family]})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder, max_shard_size="100KB" if family in SHARDED else "1GB")
    return folder


def generated(model: Any, requests: tuple[Request, ...]) -> dict[int, list[int]]:
    """Greedy tokens of Transformers' `generate`, by request, one prompt at a time. When they end is
    for the model's generation_config to say."""
    import torch

    made = {}
    for request in requests:
        prompt = torch.tensor([request.prompt])
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.output_len,
            do_sample=False,
            pad_token_id=0,
        )
        made[request.index] = out[0, prompt.shape[1] :].tolist()
    return made


def plain(folder: Path | str, work: Work) -> dict[int, list[int]]:
    """What Transformers makes of each prompt of `work` alone, with the weights in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if work.ignore_eos:
        model.generation_config.eos_token_id = None
    return generated(model, work.requests)


def ragged_requests(vocab: int, count: int = 7, seed: int = 3) -> tuple[Request, ...]:
    """Prompts of 1 to 40 tokens, outputs of 3 to 12; the same every time."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return tuple(
        Request(
            i,
            tuple(int(t) for t in rng.integers(8, vocab, rng.integers(1, 41))),
            int(rng.integers(3, 13)),
        )
        for i in range(count)
    )
