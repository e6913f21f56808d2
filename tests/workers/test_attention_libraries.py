"""Libraries of attention under the engine `torch`: what they are handed, beside the reference, with
the libraries in plain torch; and what is refused."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from fake_attention import fa3 as library
from fake_attention import flashinfer
from ranks import BASE, FAMILIES, engine_plan, ragged_requests, tokens

from orchestrator.errors import UserError
from orchestrator.plan.devices import check_attention
from strategies import ModelShape, Topology
from strategies.shapes import Device
from workers import engines
from workers.actor import Worker
from workers.engines.native import support
from workers.engines.native.build import _prompt_sizes, attention_bytes
from workers.engines.native.contexts import DecodeContext
from workers.engines.native.graphs import PROMPTS, PromptStep
from workers.engines.native.kernels import fa3, kernels_of, reference
from workers.engines.native.kernels.flashinfer import FlashInfer
from workers.messages import EnginePlan, Request, Switches, Work

PAGES, PAGE = 40, 64
FP8 = torch.float8_e4m3fn
HEADS = [(8, 2), (10, 2), (5, 1), (3, 3)]
WINDOWS = [None, 1, 7, 64, 65, 100_000]


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    with torch.inference_mode(), library() as counted:
        torch.manual_seed(0)
        yield counted


def caches(kv_heads: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    return [torch.randn(PAGES, PAGE, kv_heads, dim).to(dtype) for _ in range(2)]


def contexts(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables that are one page wider than the longest needs, and the lengths."""
    width = -(-max(lengths) // PAGE) + 1
    free = iter((torch.randperm(PAGES - 1) + 1).tolist())
    tables = torch.zeros(len(lengths), width, dtype=torch.int32)
    for table, length in zip(tables, lengths, strict=True):
        for at in range(-(-length // PAGE)):
            table[at] = next(free)
    return tables, torch.tensor(lengths, dtype=torch.int32)


def assert_close(out: torch.Tensor, expected: torch.Tensor, error: float = 8e-3) -> None:
    assert (out.dtype, out.shape) == (expected.dtype, expected.shape)
    assert (out.double() - expected.double()).norm() < error * expected.double().norm()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_is_that_of_the_reference_whatever_the_lengths(
    dtype: torch.dtype, heads: tuple[int, int], window: int | None, calls: Counter[str]
) -> None:
    """One token, a page but for one, a page, one more, and several pages."""
    args = (
        torch.randn(6, heads[0], 32).to(dtype),
        *caches(heads[1], 32, dtype),
        *contexts([1, PAGE - 1, PAGE, PAGE + 1, 700, 2]),
        window,
    )
    assert_close(fa3.decode_attention(*args), reference.decode_attention(*args))
    assert calls == {"get_scheduler_metadata": 1, "fwd": 1}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("cache", [torch.bfloat16, FP8])
def test_decoding_by_flashinfer_is_that_of_the_reference(
    cache: torch.dtype, heads: tuple[int, int], window: int | None
) -> None:
    with torch.inference_mode(), flashinfer():
        ours = FlashInfer(reference.prefill_attention, "cpu")
        q, lengths = torch.randn(6, heads[0], 32).bfloat16(), [1, PAGE - 1, PAGE, PAGE + 1, 700, 2]
        args = (q, *caches(heads[1], 32, cache), *contexts(lengths), window)
        for _ in range(2):  # in the same room
            assert_close(ours.decode_attention(*args), reference.decode_attention(*args))
        assert ours.prefill_attention is reference.prefill_attention


@pytest.mark.parametrize("window", [None, 70])
def test_queries_go_to_a_cache_in_fp8_as_fp8(window: int | None, calls: Counter[str]) -> None:
    """And beyond its largest value they are cut off."""
    q = torch.randn(3, 8, 32).bfloat16()
    q[0, 0, 0] = 1000
    args = (*caches(2, 32, FP8), *contexts([1, 130, 64]), window)
    rounded = reference.narrowed(q, FP8).to(q.dtype)
    assert_close(fa3.decode_attention(q, *args), reference.decode_attention(rounded, *args))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("cache", [torch.bfloat16, FP8])
def test_chunks_of_prompts_are_those_of_the_reference(
    cache: torch.dtype, heads: tuple[int, int], window: int | None, calls: Counter[str]
) -> None:
    """A whole prompt, the end of a longer one, a chunk of one token, and one that fills a page."""
    new, whole = (5, 90, 1, PAGE), (5, 250, 17, PAGE)
    slots = torch.randperm(PAGES * PAGE)[: sum(whole)]
    ends = [torch.tensor([0, *lens]).cumsum(0).int() for lens in (new, whole)]
    q = torch.randn(sum(new), heads[0], 32).bfloat16()
    args = (q, *caches(heads[1], 32, cache), slots, *ends, max(new), max(whole), window)
    assert_close(fa3.prefill_attention(*args), reference.prefill_attention(*args))
    assert calls == {"fwd": 1}


def test_padding_of_a_captured_prefill_is_taken(calls: Counter[str]) -> None:
    """One prompt of 50 tokens in a step of 64: a second one of the rest, and others of none."""
    step = PromptStep.empty(64, None, torch.device("cpu"))
    ends = step.fields[3 * 64 : 3 * 64 + PROMPTS + 2]
    ends[1:], ends[2:] = 50, 64
    q, cache = torch.randn(64, 8, 32).bfloat16(), caches(2, 32)
    context = step.batch().context
    seen = context.attend(fa3, q, *cache, None)
    assert_close(seen, context.attend(reference, q, *cache, None))


def test_layers_that_see_as_much_share_the_plan_of_a_step(calls: Counter[str]) -> None:
    q, cache, (tables, lengths) = torch.randn(2, 8, 32).bfloat16(), caches(2, 32), contexts([9, 90])
    for step in (1, 2):
        context = DecodeContext(tables, lengths)
        for window in (None, 7, None, 7):
            expected = reference.decode_attention(q, *cache, tables, lengths, window)
            assert_close(context.attend(fa3, q, *cache, window), expected)
        assert calls == {"get_scheduler_metadata": 2 * step, "fwd": 4 * step}
        lengths += 1


def test_a_context_is_cut_into_whole_blocks_and_not_too_many() -> None:
    assert [fa3.parts(n) for n in (1, 128, 129, 4096, 1 << 20)] == [1, 1, 2, 32, 32]


@pytest.mark.parametrize(
    ("kind", "module", "load"),
    [
        ("fa3", "flash_attn_3", lambda: kernels_of("fa3", fusion=False)),
        ("flashinfer", "flashinfer", lambda: FlashInfer(reference.prefill_attention, "cpu")),
    ],
)
def test_where_a_library_cannot_be_loaded_the_error_says_what_to_do(
    kind: str, module: str, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=f"{kind} cannot be: .*{module}.*use --attention triton"):
        load()


def test_the_switch_chooses_it(calls: Counter[str]) -> None:
    chosen = kernels_of("fa3", fusion=False)
    assert (chosen.attention, chosen.pointwise) == (fa3, reference)


def test_requests_get_the_tokens_that_they_get_from_torch_but_for_rounding() -> None:
    """Prompts in chunks and decoding, of five layers, in BF16. Tokens are compared up to the first
    one of a request that differs."""
    shape = ModelShape.from_config(
        {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "architectures": ["LlamaForCausalLM"]},
        "llama",
    )
    work = Work(ragged_requests(shape.vocab_size, count=9), max_concurrency=4)

    def served(kind: str) -> dict[int, list[int]]:
        worker, switches = Worker(), Switches(attention=kind)
        asked = engine_plan("tp1", shape, None, work, dtype="bfloat16", switches=switches)
        try:
            worker.build("torch", asked, None)
            return tokens([worker.run(work)])
        finally:
            worker.close()

    expected = served("sdpa")
    with library() as counted:
        found = served("fa3")
    assert counted["fwd"] % shape.num_layers == 0 < counted["get_scheduler_metadata"]
    assert agreement(found, expected) > 0.9


def agreement(found: dict[int, list[int]], expected: dict[int, list[int]]) -> float:
    """The share of tokens up to the first one of each request that differs."""
    same = total = 0
    for request, ours in found.items():
        equal = [a == b for a, b in zip(ours, expected[request], strict=True)]
        seen = equal.index(False) + 1 if False in equal else len(equal)
        same, total = same + sum(equal[:seen]), total + seen
    return same / total


# -- what is refused

SHAPE = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)


KINDS = ["fa3", "fa3-prefill", "flashinfer"]


def plan(model: ModelShape = SHAPE, attention: str = "fa3", **changes: object) -> EnginePlan:
    work = Work((Request(0, (1,) * 299, 2),), 3)
    asked = {"device": "cuda", "dtype": "bfloat16", "switches": Switches(attention=attention)}
    return engine_plan("tp2", model, None, work, **{**asked, **changes})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "find_spec", lambda name: "here")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": "float16"}, None),
        ({"model": replace(SHAPE, head_dim=128), "kv_cache_dtype": "fp8"}, None),
        ({"dtype": "float32"}, "has bfloat16 and float16, not float32; use --attention triton"),
        ({"model": replace(SHAPE, head_dim=272)}, ", ... 256, not 272; use --attention sdpa"),
        ({"model": replace(SHAPE, head_dim=20)}, ", ... 256, not 20; use --attention sdpa"),
        ({"device": "cpu"}, "; use sdpa or eager, or leave it out"),
    ],
)
def test_what_a_library_does_not_have_is_refused(
    changes: dict[str, object], reason: str | None, kind: str, installed: None
) -> None:
    said = engines.refusal("torch", plan(attention=kind, **changes))  # type: ignore[arg-type]
    assert said is None if reason is None else reason in str(said)


def test_decode_steps_of_triton_need_a_power_of_two_and_those_of_libraries_do_not(
    installed: None,
) -> None:
    said = {
        kind: engines.refusal("torch", plan(replace(SHAPE, head_dim=96), kind)) for kind in KINDS
    }
    assert said["fa3"] is said["flashinfer"] is None
    assert "FlashAttention-3 takes a head_dim of 16, 32, ... 256, not 96" in str(
        said["fa3-prefill"]
    )


@pytest.mark.parametrize(
    ("kind", "dim", "reason"),
    [
        ("fa3", 24, "FlashAttention-3 takes a head_dim of 16, 32, ... 256 with KV in FP8, not 24"),
        ("flashinfer", 64, "FlashInfer takes a head_dim of 128 with KV in FP8, not 64"),
    ],
)
def test_with_kv_in_fp8_fewer_head_dims_are_taken(
    kind: str, dim: int, reason: str, installed: None
) -> None:
    asked = plan(replace(SHAPE, head_dim=dim), kind, kv_cache_dtype="fp8")
    assert reason in str(engines.refusal("torch", asked))
    assert engines.refusal("torch", replace(asked, kv_cache_dtype="auto")) is None


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_library_is_not_installed_the_refusal_says_how_to(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    said = str(engines.refusal("torch", plan(attention=kind)))
    extra = kind.removesuffix("-prefill")
    assert f"pip install 'shard-orchestrator[{extra}]', or use --attention triton" in said
    assert engines.refusal("torch", plan(attention="triton")) is None


@pytest.mark.parametrize(
    ("kind", "capability", "needs"),
    [
        ("fa3", (8, 9), "9.x"),
        ("fa3", (10, 0), "9.x"),
        ("flashinfer", (8, 0), "9.x or 10.x or 12.x"),
    ],
)
def test_gpus_that_a_library_is_not_for_are_refused(
    kind: str, capability: tuple[int, int], needs: str
) -> None:
    def topology(of_first: tuple[int, int] | None) -> Topology:
        kinds = (of_first, (9, 0))
        return Topology(tuple(Device("n", i, 80, "X", kind) for i, kind in enumerate(kinds)))

    check_attention(plan(attention=kind), topology((9, 0)))
    check_attention(plan(attention=kind), topology(None))
    check_attention(plan(attention="triton"), topology(capability))
    said = f"needs GPUs of compute capability {needs}; X has {capability[0]}.{capability[1]}; use"
    with pytest.raises(UserError, match=said):
        check_attention(plan(attention=kind), topology(capability))


def test_the_parts_of_contexts_have_their_room_beside_the_cache() -> None:
    """Three parts of 301 tokens, three seats, two heads of a rank, 16 numbers and their sum."""
    assert attention_bytes(plan(), 0) == 3 * 3 * 2 * (16 + 1) * 4


@pytest.mark.parametrize("kind", KINDS)
def test_short_prompts_are_captured_with_a_library(kind: str) -> None:
    assert _prompt_sizes(plan(attention=kind, prefill_tokens=128), 3) == [64, 128]
