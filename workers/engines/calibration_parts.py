"""The parts that a calibration is measured in, so that its driver can tell how far it is, and keep
what was measured where a later one fails."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from workers.messages import Work

MEMORY = "memory"
PRODUCTS = "matrix products"
DECODE = "matrix products of decoding"
ON_ONE_DEVICE = (MEMORY, PRODUCTS, DECODE)
PAIRS = "transfers between pairs"

# Seconds that a part may take, and that of the pairs more for each.
PART_S = 300.0
PAIR_S = 10.0


@dataclass(frozen=True, slots=True)
class Part(Work):
    """Measure one of the `parts`, and report what was found in this one and in those before."""

    part: str = MEMORY


def collectives_of(ranks: int) -> str:
    """The part over the first `ranks` ranks."""
    return f"collectives of {ranks} ranks"


def parts(ranks: int) -> dict[str, float]:
    """The parts of a calibration of so many ranks, in their order, each with the seconds that it
    may take."""
    groups = (collectives_of(size) for size in reversed(group_sizes(ranks)))
    others = ranks * (ranks - 1) // 2 - 1  # the first two are a group
    pairs = {PAIRS: PART_S + PAIR_S * others} if others > 0 else {}
    return {**dict.fromkeys((*ON_ONE_DEVICE, *groups), PART_S), **pairs}


def group_sizes(ranks: int) -> list[int]:
    """2, 4, 8 ... and all of them; nothing for one rank."""
    powers = itertools.takewhile(lambda size: size < ranks, (2**i for i in itertools.count(1)))
    return [*powers, ranks] if ranks > 1 else []
