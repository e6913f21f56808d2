"""Layouts of a model that are planned for no machine that is here."""

from __future__ import annotations

import math

from orchestrator.errors import UserError
from strategies import Layout, LayoutError, Load, ModelShape, Topology, parse, plan_layout
from strategies.registry import factorisations

MOST_GPUS = 4096
MOST_UNNAMED = 64  # GPUs of which every layout is looked at
LOAD = Load(256, 128, 8)  # what a strategy may look at where nothing is said of lengths


def layouts_of(model: ModelShape, strategy: str | None, gpus: int | None) -> list[Layout]:
    """The layout `strategy`, which must be of `gpus` GPUs where their number is said; without it
    every combination of tp, pp and dp that `gpus` GPUs (else one) can have.

    Raises UserError, and LayoutError for a layout that the model cannot have.
    """
    if strategy is None:
        return _all_of(model, gpus or 1)
    named = _planned(model, strategy)
    ranks = named.placement.num_ranks
    if gpus is not None and ranks != gpus:
        raise UserError(
            f"{strategy} is a layout of {ranks} GPUs, and {gpus} are named; leave one of them out"
        )
    return [named]


def _planned(model: ModelShape, name: str) -> Layout:
    ranks = math.prod(number for key, number in parse(name) if key in ("tp", "pp", "dp"))
    if ranks > MOST_GPUS:
        raise UserError(f"{name} is a layout of {ranks} GPUs; use {MOST_GPUS} at most")
    return plan_layout(name, model, LOAD, Topology.uniform(max(ranks, 1)))


def _all_of(model: ModelShape, gpus: int) -> list[Layout]:
    if gpus > MOST_UNNAMED:
        raise UserError(
            f"{gpus} GPUs have too many layouts to look at each; name the strategy, as in "
            f"tp8dp{gpus // 8}"
        )
    found = []
    for name in factorisations(gpus):
        try:
            found.append(_planned(model, name))
        except LayoutError:  # heads or layers that do not divide
            continue
    return found
