"""The parts that a calibration is measured in, so that its driver can tell how far it is."""

from __future__ import annotations

from dataclasses import dataclass

from workers.messages import Work

MEMORY = "memory"
PRODUCTS = "matrix products"
DECODE = "matrix products of decoding"
COLLECTIVES = "collectives"
PARTS = (MEMORY, PRODUCTS, DECODE, COLLECTIVES)


@dataclass(frozen=True, slots=True)
class Part(Work):
    """Measure one of PARTS. is_last: then report what was found in all of them."""

    part: str = MEMORY
    is_last: bool = False
