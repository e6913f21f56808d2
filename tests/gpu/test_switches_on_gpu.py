"""The switches of the engine `torch` on a GPU: every value makes the same tokens in float32, and
attention in plain torch is that of the reference inside a graph too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import BASE, FAMILIES, engine_plan, ragged_requests, tokens

from strategies import ModelShape
from workers.actor import Worker
from workers.engines.native.kernels import dense, reference
from workers.engines.native.support import choices, refusal
from workers.messages import RankReport, Switches, Work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")
SHAPE = ModelShape.from_config(
    {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "architectures": ["LlamaForCausalLM"]},
    "llama",
)
WORK = Work(ragged_requests(SHAPE.vocab_size, count=9), max_concurrency=4)
PLAN = engine_plan("tp1", SHAPE, None, WORK, device="cuda")
ALL = [Switches(**{name: value}) for name, values in choices(PLAN).items() for value in values[1:]]
EACH = [one for one in ALL if refusal(replace(PLAN, switches=one)) is None]  # in float32


def served(switches: Switches, **changes: Any) -> RankReport:
    worker = Worker()
    try:
        asked = engine_plan("tp1", SHAPE, None, WORK, device="cuda", switches=switches, **changes)
        worker.build("torch", asked, None)
        return worker.run(Work(WORK.requests, WORK.max_concurrency, observe=True))
    finally:
        worker.close()


@pytest.fixture(scope="module")
def plain() -> RankReport:
    return served(Switches())


@pytest.mark.parametrize("switches", EACH, ids=lambda one: "-".join(*one.asked.items()))
def test_tokens_do_not_depend_on_any_switch(switches: Switches, plain: RankReport) -> None:
    report = served(switches)
    assert tokens([report]) == tokens([plain])
    assert [one.phase for one in report.attention] == ["prefill", "decode"]
    assert all(one.seconds > 0 for one in report.attention)


def test_memory_rises_above_what_was_there_before(plain: RankReport) -> None:
    assert plain.memory_swing_bytes is not None
    assert 0 < plain.memory_swing_bytes < plain.peak_memory_bytes


@pytest.mark.parametrize("kind", [dense.EAGER, dense.SDPA], ids=["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 1, 65, 10**6])
def test_a_captured_decode_in_plain_torch_follows_the_lengths(
    kind: dense.Dense, window: int | None
) -> None:
    q = torch.randn(5, 10, 64, device="cuda")
    keys, values = (torch.randn(41, 64, 2, 64, device="cuda") for _ in range(2))
    tables = (torch.randperm(40, device="cuda", dtype=torch.int32) + 1).view(5, 8)
    lengths = torch.ones(5, device="cuda", dtype=torch.int32)
    args = (q, keys, values, tables, lengths, window)
    kind.decode_attention(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kind.decode_attention(*args)
    for most in (1, 64, 512):
        lengths.copy_(torch.randint(1, most + 1, (5,), device="cuda"))
        graph.replay()
        expected = reference.decode_attention(*args)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
