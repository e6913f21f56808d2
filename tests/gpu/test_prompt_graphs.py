"""Prompts read in a captured step against the same read kernel by kernel. Runs where there is a
GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import BASE, FAMILIES, engine_plan

from strategies import ModelShape
from workers.communicator import Communicator
from workers.engines.native.build import load_decoder, make_cache, make_runner
from workers.engines.native.scheduler import Chunk, Sequence, Step
from workers.engines.native.support import LIBRARIES, refusal
from workers.messages import Request, Switches, Work
from workers.rank import RankContext
from workers.records import PREFILL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU captures nothing")
SHAPE = ModelShape.from_config(
    {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "architectures": ["LlamaForCausalLM"]},
    "llama",
)
PROMPTS = [tuple(torch.arange(n).mul(7).add(n).remainder(120).tolist()) for n in (70, 1, 45, 64)]
PAGES = [(1, 2), (3, 4), (5, 6), (7, 8)]


@pytest.mark.parametrize("attention", ["triton", *LIBRARIES])
@torch.inference_mode()
def test_a_captured_step_reads_prompts_as_single_kernels_do(attention: str) -> None:
    work = Work(tuple(Request(i, p, 20) for i, p in enumerate(PROMPTS)), max_concurrency=4)
    changes: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "prefill_tokens": 512}
    changes["switches"] = Switches(attention=attention)
    plan = engine_plan("tp1", SHAPE, None, work, **changes)
    if (reason := refusal(plan)) is not None:
        pytest.skip(reason)
    context = RankContext(0, plan.placement, torch.device("cuda"))
    communicator = Communicator(context)
    decoder, cache = load_decoder(context, plan, communicator), make_cache(context, plan, 8)
    runner = make_runner(plan, communicator, decoder, cache)
    assert sorted(runner._prompt_steps) == [64, 128, 192, 256, 384]

    def read() -> tuple[list[int], list[torch.Tensor]]:
        sequences = [
            Sequence(request, seat, list(PAGES[seat])) for seat, request in enumerate(work.requests)
        ]
        chunks = tuple(Chunk(one, 0, len(one.request.prompt)) for one in sequences)
        tokens = runner.run(Step(0, PREFILL, 0, chunks, tuple(sequences)))
        assert tokens is not None
        pages = [page for of_request in PAGES for page in of_request]
        caches = (*cache.keys.values(), *cache.values.values())
        return tokens.tolist(), [one[pages].clone() for one in caches]

    captured = read()
    for one in (*cache.keys.values(), *cache.values.values()):
        one.zero_()
    runner.close()
    eager = read()
    assert captured[0] == eager[0]
    assert runner.state.position.tolist() == [70, 1, 45, 64, 0]
    for ours, expected in zip(captured[1], eager[1], strict=True):
        assert (ours.float() - expected.float()).norm() < 8e-3 * expected.float().norm()
