"""`--overlap on`: a large pass in two halves makes the same tokens, moves the same bytes, and one
half is summed while the other computes."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ranks import BASE, FAMILIES, Pool, engine_plan, tokens
from torch import Tensor

from strategies import ModelShape
from workers.backends import Sum
from workers.communicator import Communicator
from workers.engines.native import build, model
from workers.engines.native.contexts import PrefillContext
from workers.engines.native.examining import Examination
from workers.engines.native.model import Batch
from workers.engines.native.pages import PAGE
from workers.messages import EnginePlan, RankReport, Request, Switches, Work
from workers.rank import RankContext

TOKENS = 9
ALL_REDUCES = ("prefill", "all_reduce", "tp")


def shape_of(family: str, **config: Any) -> ModelShape:
    named = {"architectures": [f"{family}ForCausalLM"], "max_position_embeddings": 4096}
    return ModelShape.from_config({**BASE, **FAMILIES[family], **named, **config}, family)


LLAMA = shape_of("Llama")


def requests(lengths: list[int]) -> tuple[Request, ...]:
    of = random.Random(5)
    prompts = (tuple(of.randrange(8, LLAMA.vocab_size) for _ in range(size)) for size in lengths)
    return tuple(Request(index, prompt, 5) for index, prompt in enumerate(prompts))


# Of two passes of prompts one is large, then the rest of the longest: a small one.
WORK = Work(requests([1500, 100, 2300]), max_concurrency=3)


def plan(layout: str, overlap: str, **switches: str) -> EnginePlan:
    asked = Switches(overlap=overlap, **switches)
    return engine_plan(layout, LLAMA, None, WORK, prefill_tokens=2048, switches=asked)


def summed(reports: list[RankReport]) -> tuple[int, int]:
    """Calls and bytes of rank 0's sums over prompts."""
    found = reports[0].collectives.to_pylist()
    mine = [one for one in found if (one["phase"], one["op"], one["axis"]) == ALL_REDUCES]
    return sum(one["calls"] for one in mine), sum(one["bytes"] for one in mine)


@pytest.mark.parametrize("layout", ["tp2", "tp4", "tp2pp2"])
@pytest.mark.parametrize("allreduce", ["gloo", "shm"])
def test_the_tokens_and_the_bytes_are_the_same(layout: str, allreduce: str, pool: Pool) -> None:
    apart, together = (
        pool.serve(plan(layout, overlap, allreduce=allreduce), WORK)[0] for overlap in ("off", "on")
    )
    assert tokens(together) == tokens(apart) == tokens(pool.serve(plan("tp1", "on"), WORK)[0])
    (calls, size), (halves, same) = summed(apart), summed(together)
    assert same == size
    assert calls < halves < 2 * calls


@dataclass
class Silent:
    """A rank's backend that sums nothing, and notes when."""

    noted: list[str] = field(default_factory=list)

    def outbox(self, *_: object) -> None:
        return None

    def fuses(self, *_: object) -> bool:
        return False

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        self.noted.append(f"sum of {x.shape[0]}")
        return x

    def start_all_reduce(self, x: Tensor, axis: str) -> Sum:
        self.noted.append(f"begin {x.shape[0]}")

        def ended() -> Tensor:
            self.noted.append(f"end {x.shape[0]}")
            return x

        return ended


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "OVERLAPPED", TOKENS)


def _forward(
    shape: ModelShape,
    overlap: str,
    count: int = TOKENS,
    layout: str = "tp2",
    looks: bool = False,
    **changes: Any,
) -> tuple[Tensor, list[str]]:
    """Of `count` tokens, on the first rank alone."""
    work = Work(requests([20]), 1)
    asked = engine_plan(layout, shape, None, work, switches=Switches(overlap=overlap), **changes)
    communicator = Communicator(RankContext(0, asked.placement, torch.device("cpu")))
    communicator.backend = backend = Silent()  # type: ignore[assignment]
    with torch.inference_mode():
        decoder = build.load_decoder(communicator.context, asked, communicator)
        at, ends = torch.arange(count), torch.tensor([0, count], dtype=torch.int32)
        seen = PrefillContext(at + PAGE, ends, ends, count, count)
        cache = build.make_cache(communicator.context, asked, 1)
        looking = Examination(communicator).of(decoder) if looks else nullcontext()
        with looking:
            out = decoder.forward(Batch(at * 7 % 100, at, at + PAGE, seen), cache)
    return out, backend.noted


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (LLAMA, {}),
        (shape_of("Qwen3", num_key_value_heads=4), {}),
        (shape_of("Llama", attention_bias=True), {}),
        (LLAMA, {"quantization": "fp8"}),
    ],
    ids=["plain", "with norms of queries", "with a bias behind the sum", "in FP8"],
)
def test_halves_have_the_logits_of_the_whole(shape: ModelShape, changes: dict[str, Any]) -> None:
    apart, together = (_forward(shape, overlap, **changes)[0] for overlap in ("off", "on"))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small")
def test_a_half_computes_while_the_other_is_summed() -> None:
    _, noted = _forward(LLAMA, "on")
    embedding, *layers = noted
    assert embedding == f"sum of {TOKENS}"
    a_layer = ["begin 5", "begin 4", "end 5", "begin 5", "end 4", "begin 4"]  # of two matrices
    assert layers[:6] == a_layer
    assert layers[6:8] == ["end 5", "end 4"]
    assert layers[-2:] == ["end 5", "end 4"]
    assert len(layers) == 8 * LLAMA.num_layers


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("overlap", "count", "layout"),
    [("off", TOKENS, "tp2"), ("on", TOKENS - 1, "tp2"), ("on", TOKENS, "tp1")],
    ids=["off", "a small pass", "no tp"],
)
def test_nothing_is_cut_where_nothing_would_overlap(overlap: str, count: int, layout: str) -> None:
    _, noted = _forward(LLAMA, overlap, count, layout)
    assert not [one for one in noted if one.startswith("begin")]


def test_without_collectives_a_begun_sum_is_nothing() -> None:
    communicator, x = Communicator(context_of("tp2"), ablated=True), torch.ones(3)
    assert communicator.start_all_reduce(x, "tp")() is x
    assert not communicator.calls


def context_of(layout: str) -> RankContext:
    placement = engine_plan(layout, LLAMA, None, WORK).placement
    return RankContext(0, placement, torch.device("cpu"))


@pytest.mark.usefixtures("small")
def test_layers_are_looked_at_in_one() -> None:
    _, noted = _forward(LLAMA, "on", looks=True)
    assert set(noted) == {f"sum of {TOKENS}"}
