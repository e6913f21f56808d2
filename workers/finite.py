"""Values that are not finite (NaN, infinity) have no place in a comparison: a run that makes them
fails."""

from __future__ import annotations

BROKEN = -1  # in place of a sampled token: its logits were not finite


class NotFinite(ArithmeticError):
    """Logits that are not finite: a run that makes them counts for nothing. The message says the
    step, the request, and where to look."""
