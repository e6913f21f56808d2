"""Where the time of GPUs goes, in the parts that measurements have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import add, attrgetter

TINY = 1e-9  # share of a sum that is rounding


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of one GPU, or of several together.

    weights, kv: streaming them at the memory's rate. arithmetic: operations, as far as they take
    longer. inefficiency: the rest of compute. transfer, wait: a collective moves data, or waits for
    its last rank. bubble: waiting for another stage. gaps: nothing runs.
    """

    weights: float = 0.0
    kv: float = 0.0
    arithmetic: float = 0.0
    inefficiency: float = 0.0
    transfer: float = 0.0
    wait: float = 0.0
    bubble: float = 0.0
    gaps: float = 0.0

    @property
    def seconds(self) -> float:
        """All of them."""
        return float(sum(_values(self)))

    @property
    def compute(self) -> float:
        """Kernels that are no communication."""
        return self.weights + self.kv + self.arithmetic + self.inefficiency

    @property
    def communication(self) -> float:
        """Transfer and wait."""
        return self.transfer + self.wait

    def __add__(self, other: Parts) -> Parts:
        return Parts(*map(add, _values(self), _values(other)))

    def times(self, number: float) -> Parts:
        """Each part `number` times."""
        return Parts(*(number * part for part in _values(self)))

    def without_noise(self) -> Parts:
        """With 0 for each part that is nothing but rounding of the sum."""
        least = TINY * self.seconds
        return Parts(*(part if abs(part) > least else 0.0 for part in _values(self)))


NAMES = tuple(one.name for one in fields(Parts))
_values = attrgetter(*NAMES)  # several times as fast as `dataclasses.astuple`, which copies
