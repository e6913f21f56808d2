"""What results lack: cells that were asked for and have no run, not made yet or damaged since; and
what an imported result never had."""

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


@row
class Imported:
    """Results that `orchestrator import` wrote."""

    experiment: str = column("name of the experiment")
    format: str = column("what was imported: vllm-bench or orchestrator-export")
    files: str = column("the files, separated by commas")

    @property
    def sentence(self) -> str:
        """Where they are from, and why columns are empty."""
        return (
            f"{self.experiment} was imported ({self.format}: {self.files}): it has the columns of "
            "those files and no others"
        )


IMPORTED = Table("imported", Imported)


def imported(results: Results) -> list[Imported]:
    """One row where the manifest says that the results were imported."""
    found = results.manifest.get("imported")
    if not isinstance(found, dict):
        return []
    experiment = str(results.manifest.get("name") or results.folder.name)
    files = ", ".join(map(str, found.get("files") or ()))
    return [Imported(experiment=experiment, format=str(found.get("format")), files=files)]
