"""Data parallelism: whole replicas, requests dealt out."""

from __future__ import annotations

from dataclasses import replace

from strategies.errors import LayoutError
from strategies.placement import Placement
from strategies.shapes import Load, ModelShape, Topology


def dp(
    placement: Placement, number: int, model: ModelShape, load: Load, topology: Topology
) -> Placement:
    """`number` replicas of the placement; the batch is shared out over them.

    Raises LayoutError for a number under 1.
    """
    if number < 1:
        raise LayoutError(f"dp={number} asks for {number} replicas; use 1 or more")
    if number == 1:
        return placement
    tokens = {**placement.tokens, "batch": (*placement.tokens.get("batch", ()), "dp")}
    return replace(placement.with_axis("dp", number), tokens=tokens)
