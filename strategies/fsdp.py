"""Fully sharded data parallelism: parameters, gradients and optimizer state cut over replicas (Zhao
et al., arXiv:2304.11277; torch's `fully_shard`)."""

from __future__ import annotations

from dataclasses import replace

from strategies.errors import LayoutError
from strategies.placement import Placement, Split
from strategies.shapes import Load, ModelShape, Topology


def fsdp(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """Cut what training keeps (parameters, gradients, optimizer state) by rows over `number`
    replicas; the batch is shared out over them.

    Raises LayoutError for a number under 1, and where nothing is trained.
    """
    if number < 1:
        raise LayoutError(f"fsdp={number} asks for {number} replicas; use 1 or more")
    if load.training is None:
        raise LayoutError(
            f"fsdp{number} only trains; to generate, use dp{number}, or dp{number}zero3, which "
            "keeps a part of the parameters on each GPU as well"
        )
    if number == 1:
        return placement
    # What an earlier strategy cut is cut once more, so its patterns stay those that decide.
    names = [name for name, _ in model.parameters()]
    patterns = {placement.pattern_of(name) or _any_layer(name) for name in names}
    tokens = {**placement.tokens, "batch": (*placement.tokens.get("batch", ()), "fsdp")}
    cuts = {pattern: Split("fsdp", 0, chunked=True) for pattern in sorted(patterns)}
    return replace(placement.with_axis("fsdp", number).with_params(cuts), tokens=tokens)


def _any_layer(name: str) -> str:
    """The pattern of a parameter in every layer."""
    parts = name.split(".")
    return ".".join("*" if part.isdigit() else part for part in parts)
