"""The state of the source that runs: its commit, and whether it was changed since."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]


class Source(NamedTuple):
    """commit: of the checkout. dirty: tracked files differ from it."""

    commit: str
    dirty: bool


def source(folder: Path = CHECKOUT) -> Source | None:
    """The state of the checkout in `folder`, by default the one that this file is in; None where
    that is no checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    if not (folder / ".git").exists():
        return None
    try:
        commit = git("rev-parse", "HEAD")
        return Source(commit, bool(git("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None


def remark(found: Source | None) -> str | None:
    """What a user should know of the source before a run; None where it is all in a commit."""
    if found is None or not found.dirty:
        return None
    return (
        f"the source differs from its commit {found.commit[:10]}; nobody can make these results "
        "again from the commit alone"
    )
