"""By what losses are multiplied in fp16, so that small gradients do not vanish."""

from __future__ import annotations

from dataclasses import dataclass

# As in torch.amp.GradScaler.
FIRST, FACTOR, INTERVAL = 2.0**16, 2.0, 2000


@dataclass(frozen=True, slots=True)
class Scaling:
    """Dynamic loss scaling (Micikevicius et al., arXiv:1710.03740, section 3.2). good_steps: steps
    at this scale whose gradients were finite."""

    scale: float = FIRST
    good_steps: int = 0

    def after(self, overflowed: bool) -> Scaling:
        """That of the next step: less after gradients that overflowed, more after many that did
        not."""
        if overflowed:
            return Scaling(self.scale / FACTOR)
        if self.good_steps + 1 == INTERVAL:
            return Scaling(self.scale * FACTOR)
        return Scaling(self.scale, self.good_steps + 1)
