"""Tensor parallelism: every layer cut over neighbouring ranks (Shoeybi et al., Megatron-LM,
arXiv:1909.08053)."""

from __future__ import annotations

from strategies.errors import LayoutError
from strategies.placement import Placement, Split
from strategies.shapes import Load, ModelShape, Topology

# Projections as Megatron-LM cuts them: by their outputs, and by their inputs.
COLUMN_PARALLEL = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
ROW_PARALLEL = frozenset({"o_proj", "down_proj"})


def tp(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """Cut attention by heads, the MLP by columns then rows, embedding and head by vocabulary, over
    `number` ranks.

    KV heads are replicated in groups where there are fewer of them than ranks, but not in training.
    Raises LayoutError where heads or the MLP's width do not divide.
    """
    check_degree(number, model, trains=load.training is not None)
    if load.training and model.num_kv_heads % number:
        raise LayoutError(
            f"tp={number} copies the {model.num_kv_heads} KV heads of {model.name} over ranks, "
            f"which only generates: copies would be trained apart; use {model.num_kv_heads} ranks "
            "of tp at most"
        )
    if number == 1:
        return placement
    layer, head = "model.layers.*.", model.head_dim
    cuts = {
        "model.embed_tokens.weight": Split("tp", 0, parts=near_even(model.vocab_size, number)),
        "lm_head.weight": Split("tp", 0, parts=near_even(model.vocab_size, number)),
        layer + "self_attn.o_proj.weight": Split("tp", 1, unit=head),
        layer + "mlp.gate_proj.weight": Split("tp", 0),
        layer + "mlp.up_proj.weight": Split("tp", 0),
        layer + "mlp.down_proj.weight": Split("tp", 1),
    }
    for projection in "qkv":
        for kind in ("weight", "bias"):
            cuts[f"{layer}self_attn.{projection}_proj.{kind}"] = Split("tp", 0, unit=head)
    return placement.with_axis("tp", number).with_params(cuts)


def near_even(size: int, parts: int) -> tuple[int, ...]:
    """`size` cut into `parts` whole numbers that differ by at most one."""
    share, rest = divmod(size, parts)
    return tuple(share + (i < rest) for i in range(parts))


def check_degree(number: int, model: ModelShape, trains: bool = False) -> None:
    """Raise LayoutError unless heads, KV heads and the MLP's width divide over `number` ranks.
    trains: then no more ranks than KV heads are named as what would do."""
    if _divides(number, model):
        return
    most = model.num_kv_heads if trains else model.num_heads
    fits = [n for n in range(1, most + 1) if _divides(n, model)]
    what = f"{model.num_heads} heads"
    if model.num_heads % number == 0:
        what = f"{model.num_kv_heads} KV heads"
        if model.num_kv_heads % number == 0 or number % model.num_kv_heads == 0:
            what = f"{model.intermediate_size} MLP columns"
    raise LayoutError(
        f"{what} of {model.name} do not divide over tp={number}; use {', '.join(map(str, fits))}"
    )


def _divides(number: int, model: ModelShape) -> bool:
    kv = model.num_kv_heads
    return not (
        model.num_heads % number
        or model.intermediate_size % number
        or (kv % number and number % kv)
    )
