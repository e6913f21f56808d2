"""What a driver tells while it runs."""

from __future__ import annotations

from typing import Protocol

from orchestrator.analysis.summary import Measured
from orchestrator.cluster.connection import Cluster


class Progress(Protocol):
    """Told what happens, while it happens."""

    def begin(self, runs: int, skipped: int) -> None:
        """`runs` are to be done, `skipped` have a result already."""
        ...

    def connected(self, cluster: Cluster) -> None:
        """The cluster is there."""
        ...

    def phase(self, deployment: str, cell: str, what: str) -> None:
        """What begins now: "building", "warming up", "pilot", "start 1/3 run 2/2", "observing".

        `cell` is empty while building.
        """
        ...

    def finished(self, run: Measured) -> None:
        """A run has ended and is on disk."""
        ...

    def note(self, line: str) -> None:
        """Something that the user should read."""
        ...
