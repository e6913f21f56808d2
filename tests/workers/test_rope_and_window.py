"""Rotary variants and sliding windows: the numbers of Transformers, and its tokens under every
layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import BASE, Pool, engine_plan, generated, ragged_requests, tokens

from strategies.shapes import ModelShape
from workers.communicator import Communicator
from workers.engines.native.build import load_decoder
from workers.engines.native.engine import TorchEngine
from workers.engines.native.kernels import reference
from workers.engines.native.rope import rotary_table
from workers.engines.transformers_config import shape_to_config
from workers.messages import Request, Work
from workers.rank import RankContext
from workers.records import DECODE, PREFILL

LAYOUTS = ["tp1", "tp2", "pp2", "tp2pp2"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": YARN,
    "yarn with its scale": {**YARN, "attention_factor": 1.3},
    "yarn with mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.4},
    "yarn with betas": {**YARN, "beta_fast": 6.0, "beta_slow": 0.5, "truncate": False},
    "yarn that does not stretch": {**YARN, "factor": 1.0},
}
WINDOW = 6


def of_qwen(sliding: tuple[bool, ...]) -> dict[str, Any]:
    kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    return {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": kinds}


# variant -> family, what its config has beside BASE, what its shape has beside that of the family
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{
        name: ("Llama", {"rope_parameters": {"rope_theta": 10000.0, **rope}}, {})
        for name, rope in ROPES.items()
    },
    "a window in every layer": ("Mistral", {"sliding_window": WINDOW}, {"sliding_window": WINDOW}),
    "a window in the last layers": (
        "Qwen2",
        of_qwen((False, False, True, True, True)),
        {"sliding_window": WINDOW, "sliding_layers": (False, False, True, True, True)},
    ),
    "a window in every other layer, and yarn": (
        "Qwen3",
        {
            **of_qwen((True, False, True, False, True)),
            "rope_parameters": {"rope_theta": 10000.0, **YARN},
        },
        {"sliding_window": WINDOW, "sliding_layers": (True, False, True, False, True)},
    ),
}


def config_of(variant: str) -> Any:
    import transformers

    family, fields, _ = VARIANTS[variant]
    made = {**BASE, "num_key_value_heads": 2, "head_dim": 16, **fields}
    return getattr(transformers, f"{family}Config")(**made)


def shape_of(variant: str) -> ModelShape:
    family, fields, changes = VARIANTS[variant]
    plain = {**BASE, "architectures": [f"{family}ForCausalLM"], "num_key_value_heads": 2}
    shape = ModelShape.from_config({**plain, "sliding_window": None, "head_dim": 16}, "small")
    rope = {k: v for k, v in fields.get("rope_parameters", {}).items() if k != "rope_theta"}
    return replace(shape, rope_scaling=tuple(rope.items()), **changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """variant -> a folder of large random weights, and Transformers' model of them."""

    @functools.cache
    def save(variant: str) -> tuple[Path, Any]:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(7)
        family: Any = AutoModelForCausalLM
        model = family.from_config(config_of(variant), dtype=torch.float32).eval()
        folder = tmp_path_factory.mktemp("variant")
        model.save_pretrained(folder)
        return folder, model

    return save


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_makes_the_tokens_of_generate(
    variant: str, pool: Pool, saved: Callable[[str], tuple[Path, Any]]
) -> None:
    """Prompts longer than the window and the original length, cut into chunks of 16."""
    folder, model = saved(variant)
    shape = shape_of(variant)
    requests = ragged_requests(shape.vocab_size, count=4)
    assert max(len(request.prompt) for request in requests) > 2 * WINDOW + 16
    model.generation_config.eos_token_id = None
    expected = generated(model, requests)
    work = Work(requests, max_concurrency=3)
    for layout in LAYOUTS:
        (reports,) = pool.serve(engine_plan(layout, shape, folder, work), work)
        assert tokens(reports) == expected, layout
    plain = replace(shape, rope_scaling=(), sliding_window=None)
    if variant not in ("dynamic", "yarn that does not stretch"):
        (reports,) = pool.serve(engine_plan("tp1", plain, folder, work), work)
        assert tokens(reports) != expected, "the variant must matter, or this test says nothing"


@pytest.mark.parametrize("variant", ROPES)
def test_cosines_and_sines_are_those_of_transformers(variant: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    positions = torch.arange(256)[None]
    theirs = LlamaRotaryEmbedding(config_of(variant))(torch.zeros(1), positions)
    for ours, their in zip(rotary_table(shape_of(variant), 256), theirs, strict=True):
        torch.testing.assert_close(ours, their[0, :, :8], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_that_other_engines_get_says_the_same(variant: str) -> None:
    made, whole = shape_to_config(shape_of(variant)), config_of(variant)
    for field in ("rope_parameters", "sliding_window", "use_sliding_window", "layer_types"):
        assert getattr(made, field, None) == getattr(whole, field, None), field


# -- the kernels


@pytest.mark.parametrize("window", [None, 1, 5, 16, 17, 40, 1000])
def test_a_query_sees_the_tokens_of_its_window(window: int | None) -> None:
    """Against one query at a time over the keys that it may see, wherever their pages are."""
    page, length = 16, 50
    q, keys, values = (torch.randn(shape) for shape in ((length, 4, 8), *[(5, page, 2, 8)] * 2))
    pages = torch.tensor([3, 1, 4, 2])
    slots = (pages[:, None] * page + torch.arange(page)).flatten()[:length]
    k, v = (cache.flatten(0, 1)[slots].repeat_interleave(2, 1) for cache in (keys, values))
    expected = []
    for p in range(length):
        seen = slice(0 if window is None else max(0, p - window + 1), p + 1)
        weights = torch.einsum("hd,thd->ht", q[p], k[seen]).div(8**0.5).softmax(1)
        expected.append(torch.einsum("ht,thd->hd", weights, v[seen]))
    ends = torch.tensor([0, 20], dtype=torch.int32), torch.tensor([0, length], dtype=torch.int32)
    chunk = reference.prefill_attention(q[-20:], keys, values, slots, *ends, 20, length, window)
    torch.testing.assert_close(chunk, torch.stack(expected[-20:]))
    lengths = torch.tensor([length, 33, 1])
    tables = pages.int().expand(3, -1)
    decoded = reference.decode_attention(q[lengths - 1], keys, values, tables, lengths, window)
    torch.testing.assert_close(decoded, torch.stack([expected[n - 1] for n in lengths]))


# -- what is refused


def said(shape: ModelShape, length: int = 20) -> str | None:
    plan = engine_plan("tp1", shape, None, Work((Request(0, (8,) * (length - 2), 2),), 1))
    return TorchEngine().supports(plan)


def test_dynamic_rope_is_run_up_to_the_length_that_the_model_was_made_for() -> None:
    shape = shape_of("dynamic")
    assert said(shape, 256) is None
    reason = str(said(shape, 257))
    assert "rope_type dynamic" in reason
    assert "max_position_embeddings, 256 tokens, and a request has 257" in reason


def test_rope_types_windows_and_head_sizes_that_it_does_not_know_are_refused() -> None:
    shape = shape_of("a window in every layer")
    assert said(shape) is None
    strange = replace(shape, rope_scaling=(("rope_type", "longrope"),))
    assert "rope_type longrope" in str(said(strange))
    assert "sliding_window" in str(said(replace(shape, sliding_window=0)))
    assert "sliding_layers" in str(said(replace(shape, sliding_layers=(True,))))
    assert "head_dim 15" in str(said(replace(shape, head_dim=15)))


def test_in_brief_a_pass_has_two_layers_of_each_kind(
    saved: Callable[[str], tuple[Path, Any]],
) -> None:
    folder, _ = saved("a window in the last layers")
    shape, work = shape_of("a window in the last layers"), Work(ragged_requests(100, count=1), 1)
    plan = engine_plan("tp1", shape, folder, work)
    context = RankContext(0, plan.placement, torch.device("cpu"))
    decoder = load_decoder(context, plan, Communicator(context))
    with decoder.in_brief():
        assert {phase: list(of) for phase, of in decoder.layers.items()} == {
            PREFILL: [0, 1, 2, 3],
            DECODE: [0, 1, 2, 3],
        }
    assert [list(of) for of in decoder.layers.values()] == 2 * [[0, 1, 2, 3, 4]]
