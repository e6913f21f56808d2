"""Cells that were asked for and have no run: not made yet, or damaged since."""

from __future__ import annotations

from orchestrator.analysis.load import Results
from workers.rows import Table, column, row


@row
class Missing:
    """A cell without any run."""

    experiment: str = column("name of the experiment")
    cell: str = column("name of the cell, as in the manifest")

    @property
    def sentence(self) -> str:
        """What is missing, and what to do."""
        return (
            f"{self.cell} was asked for and has no run that can be read: the same `orchestrator "
            "submit` makes it"
        )


MISSING = Table("missing", Missing)


def missing(results: Results) -> list[Missing]:
    """The cells that the manifest knows and no run is of."""
    there, asked = {run.cell.name for run in results.runs}, results.manifest.get("cells", ())
    experiment = str(results.manifest.get("name") or results.folder.name)
    return [Missing(experiment=experiment, cell=cell) for cell in asked if cell not in there]
