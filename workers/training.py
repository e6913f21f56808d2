"""The messages of training: what a run is, and what a rank reports of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """One run: `steps` optimizer steps from the first weights on. observe: whether it is taken
    apart, which no run of training is."""

    steps: int
    observe: bool = False

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"run of {self.steps} optimizer steps"


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What one rank reports of a run, beside what every run has.

    steps: table TRAINING_STEPS, from rank 0 alone. traffic: table TRAINING_COLLECTIVES, of one
    step. weight_bytes, gradient_bytes, optimizer_bytes: what this rank keeps; of gradients, at the
    end of a backward pass.
    """

    steps: pa.Table | None
    traffic: pa.Table
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
