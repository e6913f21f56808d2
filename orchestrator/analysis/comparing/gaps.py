"""What results lack: runs that were asked for and are not there, not made yet or damaged since; and
what an imported result never had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.analysis.load import Results
from orchestrator.store.manifest import runs_asked
from orchestrator.store.schema import RunKey
from workers.rows import Table, column, grouped, row

Manifest = Mapping[str, Any]


@row
class Missing:
    """A cell of which runs are missing."""

    experiment: str = column("name of the experiment")
    cell: str = column("name of the cell, as in the manifest")
    runs: int = column("runs of those asked for that can be read, failed ones too", "1")
    asked: int | None = column("runs asked for; null where the manifest does not say", "1")


MISSING = Table("missing", Missing)


def sentences(found: Iterable[Missing]) -> list[str]:
    """What is missing, and what to do: one line for the loads of a layout that lack as much."""
    alike = grouped(found, lambda one: (one.experiment, _layout(one), one.runs, one.asked))
    return [_sentence(*mine) for mine in alike.values()]


def _sentence(first: Missing, *others: Missing) -> str:
    loads = [one.cell.removeprefix(f"{_layout(one)}.") for one in others]
    cells = ", ".join([first.cell, *loads])
    each, it = (" each", "them") if others else ("", "it")
    if first.runs:
        return (
            f"{cells} has {first.runs} of {first.asked} runs{each} that were asked for: the same "
            "`orchestrator submit` makes the others"
        )
    return (
        f"{cells} was asked for and has no run that can be read: the same `orchestrator submit` "
        f"makes {it}"
    )


def _layout(one: Missing) -> str:
    """The name of a cell without its load."""
    return one.cell.rsplit(".", 2)[0]


def missing(folder: Path, manifest: Manifest, runs: Iterable[RunKey]) -> list[Missing]:
    """The cells of the manifest of which a run that was asked for is missing, or all are."""
    return list(_missing(_name(folder, manifest), manifest, runs))


def _missing(experiment: str, manifest: Manifest, runs: Iterable[RunKey]) -> Iterator[Missing]:
    made = grouped(runs, lambda run: run.cell.name)
    for cell in manifest.get("cells", ()):
        asked, mine = runs_asked(manifest, cell), made.get(cell, ())
        there = asked & {(run.start, run.run) for run in mine}
        if not mine or there < asked:
            yield Missing(
                experiment=experiment, cell=cell, runs=len(there), asked=len(asked) or None
            )


def _name(folder: Path, manifest: Manifest) -> str:
    return str(manifest.get("name") or folder.name)


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
    experiment = _name(results.folder, results.manifest)
    files = ", ".join(map(str, found.get("files") or ()))
    return [Imported(experiment=experiment, format=str(found.get("format")), files=files)]
