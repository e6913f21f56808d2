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
    head counted.

    Raises LayoutError where there are fewer layers than stages.
    """
    if number < 1 or number > model.num_layers:
        raise LayoutError(
            f"pp={number} is more stages than {model.name} has layers; use 1 to {model.num_layers}"
        )
    if number == 1:
        return placement
    table = model.vocab_size * model.hidden_size
    counts = balance(
        model.num_layers, number, model.layer_elements, first=table, last=table + model.hidden_size
    )
    return with_stages(placement, counts)


def with_stages(placement: Placement, counts: tuple[int, ...]) -> Placement:
    """`counts[i]` consecutive layers on stage i; the embedding on the first stage, final norm and
    head on the last."""
    stages, start = [], 0
    for rank, count in enumerate(counts):
        stages.append(
            Stage(rank, range(start, start + count), embed=rank == 0, head=rank == len(counts) - 1)
        )
        start += count
    return replace(placement.with_axis("pp", len(counts)), stages=tuple(stages))


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
