"""Progress of a driver, remembered."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.analysis.summary import Measured
from orchestrator.cluster.connection import Cluster
from orchestrator.store.live import Live


class Recorder:
    """What a driver tells. `on_phase` is called with what begins."""

    def __init__(self, on_phase: Callable[[str], object] | None = None) -> None:
        self.on_phase = on_phase
        self.rows: list[Measured] = []
        self.phases: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.asked = (0, 0)

    def begin(self, live: Live) -> None:
        self.asked = (live.runs, live.skipped)

    def connected(self, cluster: Cluster) -> None: ...

    def phase(self, deployment: str, cell: str, what: str) -> None:
        self.phases.append((cell or deployment, what))
        if self.on_phase:
            self.on_phase(what)

    def finished(self, run: Measured) -> None:
        self.rows.append(run)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def ends(self) -> list[tuple[str, int, str, str | None]]:
        """Of each run: layout, concurrency, what became of it and why."""
        return [
            (run.cell.strategy, run.cell.max_concurrency, run.status, run.reason)
            for run in self.rows
        ]

    def runs(self) -> list[tuple[str, int, int]]:
        """Of each run: layout, number of its start and its own."""
        return [(run.cell.strategy, run.start, run.run) for run in self.rows]

    def blocks(self) -> list[int]:
        """Of each run: the number of the command that made it."""
        return [run.conditions.block for run in self.rows]

    def builds(self) -> int:
        """How often workers were built."""
        return sum(what == "building" for _, what in self.phases)
