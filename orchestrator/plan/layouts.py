"""Layouts of a model that are planned for no machine that is here."""

from __future__ import annotations

import math
from collections.abc import Iterator

from orchestrator.errors import UserError
from strategies import Layout, LayoutError, Load, ModelShape, Topology, parse, plan_layout

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
    for tp, pp, dp in _factors(gpus):
        try:
            found.append(_planned(model, f"tp{tp}pp{pp}dp{dp}"))
        except LayoutError:  # heads or layers that do not divide
            continue
    return found


def _factors(count: int) -> Iterator[tuple[int, int, int]]:
    """Every three numbers whose product is `count`."""
    divisors = [one for one in range(1, count + 1) if count % one == 0]
    for first in divisors:
        for second in (one for one in divisors if count // first % one == 0):
            yield first, second, count // first // second
