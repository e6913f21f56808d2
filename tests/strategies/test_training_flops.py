"""The arithmetic that training needs, by hand and as torch counts it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from layouts_inputs import shape
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from strategies import ModelShape
from strategies.training import flops_per_token, model_flops_utilization
from strategies.training.flops import pairs_of
from workers.engines.transformers_config import shape_to_config

LLAMA_8B = ModelShape(
    "llama-8b", "llama", 4096, 32, 32, 8, 128, 14336, 128256, 131072, 1e-5, 5e5
)  # fmt: skip


def test_the_8b_needs_what_is_worked_out_by_hand() -> None:
    """Of 8.030 billion parameters 0.525 billion are looked up; 4096 x 4097 / 2 pairs a sequence."""
    matrices = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336) + 128256 * 4096
    attention = 32 * 12 * 4096 * 4097 / 2
    assert flops_per_token(LLAMA_8B, 4096) == 6 * matrices + attention
    assert flops_per_token(LLAMA_8B, 4096) / 1e9 == pytest.approx(48.3, abs=0.1)


def test_attention_is_half_of_what_torchtitan_counts() -> None:
    apart = flops_per_token(LLAMA_8B, 8192) - flops_per_token(LLAMA_8B, 4096)
    assert apart == pytest.approx(12 * 32 * 4096 * 4096 / 2)


@pytest.mark.parametrize("tied", [False, True])
def test_matrix_products_are_those_that_torch_counts(tied: bool) -> None:
    model = shape(family="llama", qkv_bias=False, output_bias=False, qk_norm=False)
    model = replace(model, tie_embeddings=tied)
    config = shape_to_config(model)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    tokens = torch.zeros((2, 16), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        logits = made(tokens, use_cache=False).logits
        cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    counts = counter.get_flop_counts()["Global"]
    found = sum(flops for op, flops in counts.items() if str(op) in ("aten.mm", "aten.addmm"))
    pairs = 6 * 12 * 8 * 4 * pairs_of(16, None) / 16
    assert found / 32 == flops_per_token(model, 16) - pairs


@pytest.mark.parametrize(
    ("seq_len", "window", "pairs"), [(4, None, 10), (4, 9, 10), (4, 1, 4), (5, 2, 1 + 4 * 2)]
)
def test_a_pair_of_tokens_is_counted_once_and_within_the_window(
    seq_len: int, window: int | None, pairs: int
) -> None:
    by_hand = sum(min(token + 1, window or seq_len) for token in range(seq_len))
    assert pairs_of(seq_len, window) == pairs == by_hand


def test_a_window_needs_less() -> None:
    windowed = replace(LLAMA_8B, sliding_window=1024, sliding_layers=(True, False) * 16)
    less = flops_per_token(LLAMA_8B, 4096) - flops_per_token(windowed, 4096)
    assert less * 4096 == 16 * 12 * 4096 * (pairs_of(4096, None) - pairs_of(4096, 1024))


def test_utilization_is_the_share_of_the_data_sheet_of_all_devices() -> None:
    """At 40% of 989.4 TFLOP/s, 395.8, of 48.25 GFLOP a token, a GPU trains 8202 a second."""
    peak = 989.4e12
    per_gpu = 0.4 * peak / flops_per_token(LLAMA_8B, 4096)
    assert per_gpu == pytest.approx(395.76e12 / 48.25e9, rel=1e-3)
    assert model_flops_utilization(LLAMA_8B, 4096, 2 * per_gpu, 2, peak) == pytest.approx(0.4)
