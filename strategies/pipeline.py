"""Pipeline parallelism: consecutive layers on consecutive stages."""

from __future__ import annotations

from dataclasses import replace

from strategies.errors import LayoutError
from strategies.placement import Placement, Stage
from strategies.shapes import Load, ModelShape, Topology


def pp(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """Cut the layers into `number` stages of as equal weight as whole layers allow, embedding and
    head counted; where training is interleaved, into that many for each of a rank's stages.

    Raises LayoutError where there are fewer layers than stages.
    """
    if number == 1:
        return placement
    chunks = load.training.chunks if load.training else 1
    most = model.num_layers // chunks
    if number < 1 or number > most:
        few = f"use {f'1 to {most}' if most > 1 else most}"
        if chunks == 1:
            raise LayoutError(f"pp={number} is more stages than {model.name} has layers; {few}")
        raise LayoutError(
            f"pp={number} is more stages (of {chunks} to a rank, interleaved) than {model.name} "
            f"has layers; {few}, or another --schedule"
        )
    table = model.vocab_size * model.hidden_size
    counts = balance(
        model.num_layers,
        number * chunks,
        model.layer_elements,
        first=table,
        last=table + model.hidden_size,
    )
    return with_stages(placement, counts, chunks)


def with_stages(placement: Placement, counts: tuple[int, ...], chunks: int = 1) -> Placement:
    """`counts[i]` consecutive layers on stage i; the embedding on the first stage, final norm and
    head on the last. chunks: stages of a rank; with several, stage i is on rank i modulo the number
    of ranks (Narayanan et al., arXiv:2104.04473, section 2.2)."""
    stages, start, ranks = [], 0, len(counts) // chunks
    for i, count in enumerate(counts):
        layers = range(start, start + count)
        stages.append(Stage(i % ranks, layers, embed=i == 0, head=i == len(counts) - 1))
        start += count
    return replace(placement.with_axis("pp", ranks), stages=tuple(stages))


def balance(layers: int, stages: int, layer: int, first: int, last: int) -> tuple[int, ...]:
    """Layers per stage that make the heaviest stage as light as possible, then the others as even
    as possible.

    `layer`, `first` and `last` are the weights of one layer, of what the first stage and of what
    the last holds beside its layers, in any one unit. One layer at a time goes to the stage that is
    then lightest (greedy is optimal for equal items); every stage has at least one.
    """
    extra = [0] * stages
    extra[0] += first
    extra[-1] += last
    counts = [1] * stages
    for _ in range(layers - stages):
        lightest = min(
            range(stages), key=lambda i: (counts[i] * layer + extra[i], min(i, stages - 1 - i), i)
        )
        counts[lightest] += 1
    return tuple(counts)
