"""Cells that have not all the runs that were asked for: not made yet, or damaged since."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.load import Results
from workers.rows import Table, column, grouped, row


@row
class Missing:
    """A cell of which runs are missing."""

    experiment: str = column("name of the experiment")
    cell: str = column("name of the cell, as in the manifest")
    runs: int = column("runs of those asked for that can be read, failed ones too", "1")
    asked: int | None = column("runs asked for; null where the manifest does not say", "1")

    @property
    def sentence(self) -> str:
        """What is missing, and what to do."""
        if self.runs:
            return (
                f"{self.cell} has {self.runs} of {self.asked} runs that were asked for: the same "
                "`orchestrator submit` makes the others"
            )
        return (
            f"{self.cell} was asked for and has no run that can be read: the same `orchestrator "
            "submit` makes it"
        )


MISSING = Table("missing", Missing)


def missing(results: Results) -> list[Missing]:
    """The cells of the manifest of which a run that was asked for is missing, or all are."""
    return list(_missing(results))


def _missing(results: Results) -> Iterator[Missing]:
    runs = grouped(results.runs, lambda run: run.cell.name)
    experiment = str(results.manifest.get("name") or results.folder.name)
    for cell in results.manifest.get("cells", ()):
        asked, mine = _asked(results, cell), runs.get(cell, ())
        there = asked & {(run.start, run.run) for run in mine}
        if not mine or there < asked:
            yield Missing(
                experiment=experiment, cell=cell, runs=len(there), asked=len(asked) or None
            )


def _asked(results: Results, cell: str) -> set[tuple[int, int]]:
    """(start, run) of each run of a cell that any command asked for."""
    pairs = results.manifest.get("asked", {}).get(cell, ())
    return {(s, run) for starts, runs in pairs for s in range(starts) for run in range(runs)}
