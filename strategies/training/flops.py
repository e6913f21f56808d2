"""Floating-point operations that training needs, whatever the layout, and the share that they are
of what GPUs can do."""

from __future__ import annotations

import math

from strategies.memory import window_of
from strategies.placement import EMBEDDING
from strategies.shapes import ModelShape

PASSES = 3  # forward, and backward twice: for inputs and for weights
MULTIPLY_ADD = 2


def flops_per_token(model: ModelShape, seq_len: int) -> float:
    """Operations that a token of a sequence of `seq_len` needs in training, mean over its tokens.

    6 for each element of a matrix (Kaplan et al., arXiv:2001.08361, section 2.1; an embedding that
    is only looked up has none), and 12 x heads x head_dim for each pair of tokens of attention.
    A pair is counted once, where torchtitan (`12 * l * h * q * t`) counts those behind a token too,
    which causal attention leaves out. Nothing that is recomputed is counted (Chowdhery et al.,
    arXiv:2204.02311, appendix B).
    """
    matrices = sum(
        math.prod(shape)
        for name, shape in model.parameters()
        if len(shape) == 2 and (name != EMBEDDING or model.tie_embeddings)
    )
    pairs = sum(pairs_of(seq_len, window_of(model, layer)) for layer in range(model.num_layers))
    each = 2 * MULTIPLY_ADD * PASSES * model.num_heads * model.head_dim  # scores, then values
    return MULTIPLY_ADD * PASSES * matrices + each * pairs / seq_len


def pairs_of(seq_len: int, window: int | None) -> int:
    """Pairs of a token of a sequence and one that it attends to, itself included. window: the most
    tokens that it sees; None: all before it."""
    sees = seq_len if window is None else min(window, seq_len)
    return sees * (sees + 1) // 2 + (seq_len - sees) * sees


def model_flops_utilization(
    model: ModelShape, seq_len: int, tokens_per_second: float, ranks: int, peak: float
) -> float:
    """The share, 0 to 1, of what `ranks` devices can do that training needs. tokens_per_second: of
    all of them. peak: operations/s of one device, from its data sheet (Chowdhery et al.,
    arXiv:2204.02311, section 4.1)."""
    return tokens_per_second * flops_per_token(model, seq_len) / (ranks * peak)
