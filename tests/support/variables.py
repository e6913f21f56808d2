"""The environment of programs that tests start."""

from __future__ import annotations

import os

# Of Ray: how far its workers give way. By itself it is 15, more than that of the tests beside them,
# which are to give way to them (Makefile).
NICENESS = "RAY_worker_niceness"


def without_ray() -> dict[str, str]:
    """The variables of this process, without those of a Ray that it is in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == NICENESS or not name.startswith("RAY_")
    }
