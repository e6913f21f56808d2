"""What was run: one row an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.experiment.places import place
from orchestrator.store.folders import DEFAULT_ROOT, check_version, find, read_manifest
from orchestrator.store.schema import COMPLETED, INVALID, RunOutcome
from orchestrator.store.store import Store
from workers.rows import SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Listed:
    """One experiment: where it is, what it compared, and how many of its runs ended how.

    schema_version: of results that this version cannot read it is all that is known.
    """

    name: str
    folder: str
    started_at: str
    model: str
    strategies: Sequence[str]
    completed: int
    invalid: int
    failed: int
    schema_version: int | None


def list_runs(roots: Sequence[Path]) -> list[Listed]:
    """The experiments under `roots`, newest last; none where nothing was run yet.

    Raises UserError where one of them is not there, unless it is the usual folder.
    """
    folders = {folder.resolve(): folder for root in roots for folder in _under(root)}
    return sorted(map(_describe, folders.values()), key=lambda one: one.started_at)


def _under(root: Path) -> list[Path]:
    if root.exists():
        return list(find(root))
    if root != DEFAULT_ROOT:
        raise UserError(f"there is no folder {root}; give the one that holds results")
    return []


def _describe(folder: Path) -> Listed:
    manifest = read_manifest(folder)
    version: int | None = SCHEMA_VERSION
    runs: list[RunOutcome] = []
    try:
        check_version(folder)
        runs = Store(folder).outcomes()
    except UserError:
        version = manifest.get("schema_version")
    statuses = [run.status for run in runs]
    return Listed(
        name=folder.name,
        folder=place(folder),
        started_at=str(manifest.get("started_at", "")),
        model=", ".join(dict.fromkeys(run.cell.model for run in runs)),
        strategies=list(dict.fromkeys(run.cell.strategy for run in runs)),
        completed=statuses.count(COMPLETED),
        invalid=statuses.count(INVALID),
        failed=sum(status not in (COMPLETED, INVALID) for status in statuses),
        schema_version=version,
    )
