"""Bytes of activations that training keeps for the backward pass, and those that it works with.

What is kept follows Korthikanti et al. (arXiv:2205.05198, section 4), for layers with RMSNorm,
grouped queries and SwiGLU, attention that keeps no scores (FlashAttention), and no dropout. Norms
are in float32, as in Transformers' modules. All figures are of one rank.

A compiled layer keeps less: what its way back takes, torch's partitioner cuts where the fewest
bytes are (`min_cut_rematerialization_partition`), and recomputes what small operations make of it.
Of the layers here, with tokens t, hidden size H, Q and K query and KV heads times their size, A
query heads and M columns of the MLP, it keeps, c bytes an element:

    [t, H]     the layer's input, of which a norm is recomputed
    [t, 1]     that norm's factor, in float32; likewise of the second norm
    [t, H]     what the norm makes, the input of three products; likewise of the second norm, of two
    [t, Q] x 2, [t, K] x 2, [t, A]     q and k after rotation, v, attention's output, float32 sums
    [t, H]     what the output projection makes: the residual is the input and that
    [t, M] x 3 gate, up, and their product, the input of the last matrix product
    [t, Q], [t, K], [t, A + KV heads]  with norms of heads: their inputs and factors

So there are neither norms in float32 nor the gate's activation. In FP8 a product takes its input
cast by a scale of the whole tensor, which is a number that is kept: so what norms make and the
MLP's product are recomputed from what is before them. The inputs of products are whole on each rank
of tp, all else is cut. The loss keeps the logits as they are, and goes back to them at once.
"""

from __future__ import annotations

import math

from strategies.placement import Placement, Stage
from strategies.shapes import ModelShape, TrainingLoad

FLOAT = 4  # bytes of float32: inside norms and of the loss


def compute_bytes(load: TrainingLoad) -> int:
    """Bytes of an element of the activations."""
    return FLOAT if load.precision == "fp32" else 2


def layer_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, kept: str) -> int:
    """Bytes of one micro-batch that a layer keeps. kept: an `activation_checkpointing`.

    Between the layers, tokens are shared out over tp (sequence parallelism); the inputs of matrix
    products that are cut by columns are gathered, and kept whole.
    """
    c, tp, hidden = compute_bytes(load), placement.degree("tp"), model.hidden_size
    tokens = load.micro_batch_size * load.seq_len
    if kept == "full":
        return tokens * c * hidden // tp
    if kept == "cpu-offload":
        return 0
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = c * (2 * queries + 2 * keys) + FLOAT * model.num_heads  # q, output; k, v; sums
    if kept == "selective":  # what matrix products and attention make, and the layer's input
        shared = c * (hidden + 2 * model.intermediate_size) + attention
        outputs = 1 if load.compiles else 2  # of the last product, there is no need to keep it
        return tokens * (shared // tp + outputs * c * hidden)
    if load.precision == "fp32":  # keys and values are repeated for each head of queries
        attention += c * 2 * (queries - keys)
    if load.compiles:
        return tokens * _compiled_bytes(model, load, attention, tp)
    shared = 2 * _norm(hidden, 1, c) + attention + 4 * c * model.intermediate_size
    if model.qk_norm:
        shared += _norm(queries, model.num_heads, c) + _norm(keys, model.num_kv_heads, c)
    return tokens * (shared // tp + 2 * c * hidden)


def _compiled_bytes(model: ModelShape, load: TrainingLoad, attention: int, tp: int) -> int:
    """Bytes of a token that a compiled layer keeps. attention: of that, all heads'."""
    c, hidden = compute_bytes(load), model.hidden_size
    shared = 2 * (c * hidden + FLOAT) + attention + 2 * c * model.intermediate_size
    if model.qk_norm:
        heads = model.num_heads + model.num_kv_heads
        shared += heads * (c * model.head_dim + FLOAT)
    if load.is_fp8:
        return shared // tp
    return (shared + c * model.intermediate_size) // tp + 2 * c * hidden


def stage_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, stage: Stage) -> int:
    """Bytes of one micro-batch that a stage keeps, its loss aside."""
    c, tp = compute_bytes(load), placement.degree("tp")
    tokens = load.micro_batch_size * load.seq_len
    kept = len(stage.layers) * layer_bytes(placement, model, load, load.activation_checkpointing)
    if stage.head:
        kept += tokens * (_norm(model.hidden_size, 1, c) // tp + c * model.hidden_size)
    return kept


def loss_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes that a rank with the head needs at the loss beside what is kept: of the logits, in
    float32, their logarithms and two gradients; over tp, where the loss is DTensor's, the exponents
    of the logarithms too; compiled, the logits and their gradient."""
    if not any(stage.head for stage in placement.stages_of(rank)):
        return 0
    over_tp = placement.degree("tp") > 1
    each = 2 * compute_bytes(load) if _compiles_loss(placement, load) else (3 + over_tp) * FLOAT
    return each * logits(placement, model, load)


def head_bytes(placement: Placement, model: ModelShape, load: TrainingLoad, rank: int) -> int:
    """Bytes that going back through the head needs beside what is kept: gradients of the logits, of
    its matrix and of its input: more than the loss does where tokens are few."""
    if not any(stage.head for stage in placement.stages_of(rank)):
        return 0
    tokens, columns = load.micro_batch_size * load.seq_len, _columns(placement, model)
    gradients = tokens * columns + columns * model.hidden_size + tokens * model.hidden_size
    return compute_bytes(load) * gradients


def going_back_bytes(placement: Placement, model: ModelShape, load: TrainingLoad) -> int:
    """Bytes that going back through a layer needs beside what is kept: what is recomputed of it,
    two gradients of the MLP and one of its input."""
    tokens = load.micro_batch_size * load.seq_len
    gradients = 2 * model.intermediate_size + model.hidden_size
    taken = tokens * compute_bytes(load) * gradients // placement.degree("tp")
    if load.is_fp8:  # both sides of the largest product once more, of a byte an element
        sizes = model.hidden_size, model.intermediate_size
        taken += tokens * sum(sizes) + math.prod(sizes)
    if load.activation_checkpointing == "off":
        return taken
    return taken + layer_bytes(placement, model, load, "off")


def in_flight(load: TrainingLoad, ranks: int, at: int, count: int) -> int:
    """The most (stage, micro-batch) pairs that rank `at` of a pipeline of `ranks` keeps activations
    of, with `count` micro-batches: all of them under GPipe; as many as there are ranks from it to
    the end under 1F1B (Narayanan et al., arXiv:2104.04473, section 2.2), and what
    `ScheduleInterleaved1F1B` of torch sends ahead."""
    if ranks == 1:
        return 1
    if load.schedule == "gpipe":
        return count
    behind = ranks - 1 - at
    if load.schedule == "1f1b":
        return min(count, behind + 1)
    a_round = count // max(1, count // ranks)
    return min(load.chunks * count, (load.chunks - 1) * a_round + 2 * behind + 1)


def kept_bytes(
    placement: Placement, model: ModelShape, load: TrainingLoad, rank: int, count: int
) -> tuple[int, int]:
    """Bytes of activations that `rank` keeps at most, of `count` micro-batches in a step: on its
    device, and in main memory."""
    stages, pp = placement.stages_of(rank), placement.degree("pp")
    flying = in_flight(load, pp, placement.coordinates(rank).get("pp", 0), count)
    whole = sum(stage_bytes(placement, model, load, stage) for stage in stages)
    kept = math.ceil(flying / len(stages) * whole)
    if load.schedule == "gpipe" and pp > 1 and any(stage.head for stage in stages):
        each = compute_bytes(load) if _compiles_loss(placement, load) else FLOAT
        kept += (count - 1) * each * logits(placement, model, load)  # of the others
    if load.activation_checkpointing != "cpu-offload":
        return kept, 0
    layers = sum(len(stage.layers) for stage in stages)
    inputs = layers * layer_bytes(placement, model, load, "full")
    return kept, math.ceil(flying / len(stages) * inputs)


def _compiles_loss(placement: Placement, load: TrainingLoad) -> bool:
    return load.compiles and placement.degree("tp") == 1


def logits(placement: Placement, model: ModelShape, load: TrainingLoad) -> int:
    """Elements of the logits of one micro-batch on a rank, the largest part of the vocabulary."""
    return load.micro_batch_size * load.seq_len * _columns(placement, model)


def _columns(placement: Placement, model: ModelShape) -> int:
    return -(-model.vocab_size // placement.degree("tp"))


def _norm(size: int, rows: int, c: int) -> int:
    """What a norm of `size` elements keeps, in float32 and in `c` bytes: its input, its factor for
    each row, and its result before the weight."""
    return (FLOAT + c) * size + FLOAT * rows
