"""What `--json` prints: one document of plain JSON, in which what is no number is null."""

from __future__ import annotations

import json
import math
from typing import Any


def text(data: Any) -> str:
    """`data`, made of mappings, sequences and scalars, as JSON that every parser reads: nan and
    infinities are null."""
    return json.dumps(_plain(data), indent=2, allow_nan=False)


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
