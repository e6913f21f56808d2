"""Folders of results: where an experiment's lie, which there are, and what their manifest says."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.store.arrow_files import OtherVersion
from orchestrator.store.identity import identity_of
from orchestrator.store.journal import Journal, tell
from orchestrator.store.lock import locked
from orchestrator.store.manifest import fields_of
from orchestrator.store.names import safe_name
from orchestrator.store.schema import OUTCOME_TABLES
from workers.checkpoint_files import folder_name
from workers.rows import SCHEMA_VERSION

MANIFEST = "manifest.json"
DEFAULT_ROOT = Path("results")
REPLACED = "replaced"  # a folder among results


def folder_of(experiment: Experiment) -> Path:
    """Where an experiment's results live: the same request, the same folder."""
    root = experiment.result_dir or DEFAULT_ROOT
    return root / f"{safe_name(folder_name(experiment.model))}-{identity_of(experiment)}"


def set_aside(folder: Path) -> Path | None:
    """Move results to REPLACED beside them, with a number behind their name. Returns where they are
    then; None where there were none. Raises UserError where a driver adds to them."""
    if not is_experiment(folder):
        return None
    replaced = folder.parent / REPLACED
    numbers = itertools.count(1)
    into = next(one for n in numbers if not (one := replaced / f"{folder.name}-{n}").exists())
    try:
        with locked(folder):
            replaced.mkdir(exist_ok=True)
            return folder.rename(into)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be moved to {into}: {error.strerror}; give another --result-dir"
        ) from error


def find(path: Path) -> list[Path]:
    """The experiment folders at `path`: itself, or those in it.

    Raises UserError where there are none.
    """
    if is_experiment(path):
        return [path]
    children = sorted(path.iterdir()) if path.is_dir() else []
    found = [child for child in children if is_experiment(child)]
    if not found:
        raise UserError(
            f"there are no results in {path}; give the folder that `orchestrator submit` named, or "
            "the one it is in"
        )
    return found


def is_experiment(path: Path) -> bool:
    """Whether a run was begun there, or has ended, or should be there: empty folders are no
    results."""
    if not path.is_dir():
        return False
    has_manifest, journal = (path / MANIFEST).is_file(), Journal(path)
    begun = (
        journal.known_in(folder)
        or (folder.is_dir() and (has_manifest or any(folder.glob("*.arrow"))))
        for folder in (path / name for name in OUTCOME_TABLES)
    )
    return is_packed(path) or any(begun)


def is_packed(path: Path) -> bool:
    """Whether `orchestrator pack` wrote it, whatever became of it since. What `export` wrote has
    neither checksums nor a manifest."""
    journal = Journal(path)
    is_marked = journal.exists or (path / MANIFEST).is_file()
    return any(
        journal.knows(path / f"{name}.arrow")
        or (is_marked and (path / f"{name}.arrow").is_file() and not (path / name).is_dir())
        for name in OUTCOME_TABLES
    )


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The fields of manifest.json. None of them where there is no such file, or it is not what was
    written or has a field of a wrong type: that is told."""
    content = _manifest(folder)
    return {} if content is None else fields_of(content)


def manifest_text(folder: Path) -> str:
    """manifest.json as it is written; an empty object where there is none that can be read."""
    content = _manifest(folder)
    return "{}\n" if content is None else content.decode()


def lost_manifest(folder: Path) -> bool:
    """Whether there is a manifest.json that cannot be read."""
    return has_manifest(folder) and _manifest(folder) is None


def has_manifest(folder: Path) -> bool:
    """Whether there is a manifest.json, or should be."""
    return (folder / MANIFEST).exists() or Journal(folder).knows(folder / MANIFEST)


def _manifest(folder: Path) -> bytes | None:
    path = folder / MANIFEST
    content = Journal(folder).read(path) if has_manifest(folder) else None
    try:
        if content is not None:
            fields_of(content)
        return content
    except ValueError as error:
        tell(folder, path, str(error))
        return None


def check_version(folder: Path) -> None:
    """Raise UserError if `folder` holds results of another schema version."""
    found = read_manifest(folder).get("schema_version", SCHEMA_VERSION)
    if found != SCHEMA_VERSION:
        raise OtherVersion(folder, found)


def check_writable(folder: Path, what: str, flag: str) -> None:
    """Try whether a folder, which need not be there yet, can be written, and leave nothing behind.

    Raises UserError where it cannot. what: is to be written. flag: what names another place.
    """
    places = (folder.absolute(), *folder.absolute().parents)
    there = next(place for place in places if os.path.lexists(place))
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.lstat()  # whether its name can be one
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{what} cannot be written to {folder}: {error.strerror or error}; make room there, or "
            f"give another {flag}"
        ) from error


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
