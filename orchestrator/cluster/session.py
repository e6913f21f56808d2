"""The folder of a local Ray: private, made for one command, gone after it.

Its name is short because Ray puts sockets far below it. It is kept, for its logs, where something
failed. The next command removes what a killed one left: the folder, and the processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from orchestrator.cluster import guard
from orchestrator.cluster.processes import kill
from orchestrator.errors import UserError
from workers.process import ProcessId

PREFIX = "orc-"
OWNER, KEPT = "owner.json", "kept"  # who made a folder; why it was kept
KEPT_S = 7 * 24 * 3600.0  # how long a folder with the logs of a failure stays
SOCKET_PATH = 107  # bytes of the path of a socket, on Linux
# What Ray puts below the folder, at its longest: the session is named by time and process id.
BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"


@dataclass(frozen=True, slots=True)
class RaySession:
    """Where a local Ray keeps sockets and logs."""

    folder: Path

    def keep(self, why: str) -> None:
        """Leave the folder where it is when Ray ends. `why` is written into it."""
        (self.folder / KEPT).write_text(f"{why}\n")

    @property
    def is_kept(self) -> bool:
        """Whether something failed."""
        return (self.folder / KEPT).exists()

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """What is started inside, and all that it starts later, belongs to this session."""
        os.environ[guard.MARK] = str(self.folder)
        try:
            yield
        finally:
            del os.environ[guard.MARK]

    def processes(self) -> list[psutil.Process]:
        """Every process that was started for this session, whoever is its parent now."""
        found = []
        for pid in guard.marked(str(self.folder)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found


@contextlib.contextmanager
def session() -> Iterator[RaySession]:
    """A private folder for a Ray that is started inside. It is removed at the end unless it was
    kept. Should this process be killed, a guard ends what belongs to the session.

    Raises UserError where sockets in it would have too long a path, or it cannot be made.
    """
    base = Path(folder_of_ray())
    _check_length(base)
    reap(base)
    mine = RaySession(_made(base))
    watcher = _guard(mine.folder)
    try:
        yield mine
    finally:
        watcher.communicate()
        if not mine.is_kept:
            shutil.rmtree(mine.folder, ignore_errors=True)


def folder_of_ray() -> str:
    """Where Ray keeps its folders: RAY_TMPDIR, else the system's folder for temporary files."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()


def reap(base: Path) -> None:
    """Remove the sessions in `base` whose owner is gone without having ended them, with all their
    processes; and those that were kept long ago."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and _is_stale(RaySession(folder)):
                kill(RaySession(folder).processes())
                shutil.rmtree(folder, ignore_errors=True)


def _is_stale(found: RaySession) -> bool:
    if found.is_kept:
        return time.time() - (found.folder / KEPT).stat().st_mtime > KEPT_S
    try:
        owner = ProcessId.read(json.loads((found.folder / OWNER).read_text()))
        return not owner.may_run(of_this_machine=True)  # no other one has its sockets
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False  # another program's folder, or one that is being made


def _made(base: Path) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        (folder / OWNER).write_text(json.dumps(asdict(ProcessId.here())))
    except OSError as error:
        raise UserError(
            f"Ray could not be started: it needs a folder in {base} ({error.strerror}); set "
            "RAY_TMPDIR to a folder that can be written"
        ) from error
    return folder


def _check_length(base: Path) -> None:
    longest = len(os.fsencode(base)) + len(f"/{PREFIX}12345678{BELOW}")
    if longest > SOCKET_PATH:
        raise UserError(
            f"Ray could not be started: its sockets in {base} would have paths of {longest} bytes, "
            f"and the system allows {SOCKET_PATH}; set RAY_TMPDIR to a shorter folder"
        )


def _guard(folder: Path) -> subprocess.Popen[bytes]:
    """A process that waits for the end of this one, by whatever, and then ends what is marked with
    `folder`. It is of a session of its own, so that no signal of a terminal reaches it."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={},
    )
