"""What a driver tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orchestrator.analysis.summary import Measured
from orchestrator.analysis.training.rows import Trained
from orchestrator.cluster.connection import Cluster
from orchestrator.errors import Stop
from orchestrator.store.live import Live


class Progress(Protocol):
    """Told what happens, while it happens."""

    def begin(self, live: Live) -> None:
        """What is to be done, and what has a result already."""
        ...

    def connected(self, cluster: Cluster) -> None:
        """The cluster is there."""
        ...

    def phase(self, deployment: str, cell: str, what: str) -> None:
        """What begins now: "building", "warming up", "pilot", "start 1/3 run 2/2", "observing".

        `cell` is empty while building.
        """
        ...

    def finished(self, run: Measured | Trained) -> None:
        """A run has ended and is on disk."""
        ...

    def note(self, line: str) -> None:
        """Something that the user should read."""
        ...


@dataclass(frozen=True, slots=True)
class UntilStopped:
    """Progress that is passed on until a signal has come: then no phase begins any more, and
    KeyboardInterrupt is raised instead."""

    progress: Progress
    stop: Stop

    def begin(self, live: Live) -> None:
        """Pass it on."""
        self.progress.begin(live)

    def connected(self, cluster: Cluster) -> None:
        """Pass it on."""
        self.progress.connected(cluster)

    def phase(self, deployment: str, cell: str, what: str) -> None:
        """Pass it on, unless the command is to end."""
        if self.stop.is_near:
            raise KeyboardInterrupt
        self.progress.phase(deployment, cell, what)

    def finished(self, run: Measured | Trained) -> None:
        """Pass it on."""
        self.progress.finished(run)

    def note(self, line: str) -> None:
        """Pass it on."""
        self.progress.note(line)
