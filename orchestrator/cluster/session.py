"""The folder of a local Ray: private, made for one command, gone after it.

Its name is short because Ray puts sockets far below it. It is kept, for its logs, where something
failed. The next command removes what a killed one left: the folder, and the processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from orchestrator.cluster import guard
from orchestrator.cluster.environment import import_path
from orchestrator.cluster.processes import kill
from orchestrator.errors import UserError
from workers.process import ProcessId

PREFIX = "orc-"
LETTERS = string.ascii_lowercase + string.digits
OWNER, KEPT = "owner.json", "kept"  # who made a folder; why it was kept
KEPT_S = 7 * 24 * 3600.0  # how long a folder with the logs of a failure stays
NAMED = 4  # letters and digits after PREFIX
SOCKET_PATH = 107  # bytes of the path of a socket, on Linux
# What Ray puts below the folder, at its longest: the session is named by time and process id.
BELOW = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"
LONGEST = SOCKET_PATH - len(f"/{PREFIX}") - NAMED - len(BELOW)  # bytes of the folder above
USUAL = ("/tmp", "/dev/shm")
TEMPORARY = "TMPDIR"  # where a process puts temporary files


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
        """What is started inside, and all that it starts later, belongs to this session, and can
        import what this process can. Its temporary files go into the folder: Ray's servers are
        killed, and remove none."""
        tempfile.gettempdir()  # this process stays with its own
        folder = str(self.folder)
        variables = {guard.MARK: folder, TEMPORARY: folder, "PYTHONPATH": import_path()}
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]

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

    Raises UserError as `folder_of_ray` does, or where it cannot be made.
    """
    base = folder_of_ray()
    reap(base)
    mine = RaySession(_made(base))
    watcher = _guard(mine.folder)
    try:
        yield mine
    finally:
        watcher.communicate()
        if not mine.is_kept:
            shutil.rmtree(mine.folder, ignore_errors=True)


def folder_of_ray() -> Path:
    """Where the folder of a local Ray is made, as an absolute path: RAY_TMPDIR, else the first of
    TMPDIR, /tmp and /dev/shm that can be written and is short enough for the sockets.

    Raises UserError where RAY_TMPDIR is too long, or none of the others will do.
    """
    if asked := os.environ.get("RAY_TMPDIR"):
        base = Path(asked).absolute()
        _check_length(base)
        return base
    usual = [Path(name).absolute() for name in (os.environ.get(TEMPORARY), *USUAL) if name]
    found = next((base for base in usual if _length(base) <= LONGEST and _is_writable(base)), None)
    if found is None:
        raise UserError(
            f"Ray could not be started: none of {', '.join(map(str, usual))} can be written and "
            f"has at most {LONGEST} bytes in its path; set RAY_TMPDIR to such a folder"
        )
    return found


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
        base.mkdir(parents=True, exist_ok=True)  # a RAY_TMPDIR need not be there yet
        folder = _private(base)
        (folder / OWNER).write_text(json.dumps(asdict(ProcessId.here())))
    except OSError as error:
        raise UserError(
            f"Ray could not be started: it needs a folder in {base} ({error.strerror}); set "
            "RAY_TMPDIR to a folder that can be written"
        ) from error
    return folder


def _private(base: Path) -> Path:
    """As `tempfile.mkdtemp`, with a shorter name."""
    while True:
        name = "".join(secrets.choice(LETTERS) for _ in range(NAMED))
        with contextlib.suppress(FileExistsError):
            (base / f"{PREFIX}{name}").mkdir(mode=0o700)
            return base / f"{PREFIX}{name}"


def _check_length(base: Path) -> None:
    if _length(base) > LONGEST:
        raise UserError(
            f"Ray could not be started: {base} has {_length(base)} bytes in its path, and with "
            f"more than {LONGEST} the paths of Ray's sockets exceed the {SOCKET_PATH} that the "
            "system allows; set RAY_TMPDIR to a shorter folder"
        )


def _length(base: Path) -> int:
    return len(os.fsencode(base))


def _is_writable(base: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=base) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError:
        return False
    return True


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
