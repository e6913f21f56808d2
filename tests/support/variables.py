"""The environment of programs that tests start."""

from __future__ import annotations

import os


def without_ray() -> dict[str, str]:
    """The variables of this process, without those of a Ray that it is in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
