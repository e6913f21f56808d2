"""Elements of parameters, gradients and states: what a rank keeps, and what it computes with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from strategies.placement import Of, Placement
from strategies.shapes import ModelShape


def kept_elements(placement: Placement, model: ModelShape, rank: int, of: Of) -> int:
    """Elements of all parameters, gradients or optimizer states that `rank` keeps."""
    return sum(kept_sizes(placement, model, rank, of))


def kept_sizes(placement: Placement, model: ModelShape, rank: int, of: Of) -> Iterator[int]:
    """The same of each parameter."""
    for name, shape in model.parameters():
        if placement.holds(name, rank, model):
            yield elements(placement.shard(name, shape, rank, of=of))


def largest_parameter(model: ModelShape) -> int:
    """Elements of the largest one, whole."""
    return max(math.prod(shape) for _, shape in model.parameters())


def elements(box: Sequence[slice]) -> int:
    """Elements of a slice of a tensor."""
    return math.prod(part.stop - part.start for part in box)


def whole_elements(placement: Placement, model: ModelShape, rank: int) -> dict[str, int]:
    """The number of a layer, or the name of another parameter -> elements that `rank` computes
    with."""
    found: Counter[str] = Counter()
    for name, shape in model.parameters():
        if placement.holds(name, rank, model):
            group = name.split(".")[2] if name.startswith("model.layers.") else name
            found[group] += elements(placement.shard(name, shape, rank, stored=False))
    return dict(found)


def is_gathered(placement: Placement) -> bool:
    """Whether parameters are cut along an axis that shares out the batch, so that a rank gathers
    them before it computes."""
    shared = placement.tokens.get("batch", ())
    return any(split.axis in shared for cuts in placement.params.values() for split in cuts)


def is_fsdp(placement: Placement) -> bool:
    """Whether FSDP2 keeps the parameters: those that are cut over replicas, and copies beside tp,
    where it is over one rank."""
    return is_gathered(placement) or all(placement.degree(axis) > 1 for axis in ("dp", "tp"))
