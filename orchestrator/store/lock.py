"""One driver at a time in a folder of results.

The kernel gives a `flock` back when its holder dies, however that happens, so none is stale. Who
holds it is written into the file, to be told to others. Where a file system has no `flock`, that
decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import UserError

LOCK = "driver.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process. started: when it began, in seconds since the epoch: a pid is given again."""

    host: str
    pid: int
    started: float

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        import psutil  # readers of results take no lock

        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @property
    def may_live(self) -> bool:
        """Whether it still runs. Of another host nobody knows."""
        if self.host != socket.gethostname():
            return True
        import psutil

        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1.0)
        except psutil.NoSuchProcess:
            return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that writes in `folder`, which has to be there. Raises UserError, with who it
    is, where another process writes there, and OSError where nobody can."""
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        holder = _holder(file)
        if not _takes(file, holder):
            who = f"pid {holder.pid} on {holder.host}" if holder else "another process"
            raise UserError(
                f"{who} is writing here: {folder}; wait for it to end, or give another "
                f"--result-dir (if there is no such process any more, remove {path})"
            )
        _write(file, json.dumps(asdict(Holder.here())))
        try:
            yield
        finally:
            _write(file, "")


def _takes(file: IO[str], holder: Holder | None) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # this file system has no flock
        return holder is None or not holder.may_live


def _holder(file: IO[str]) -> Holder | None:
    """Who wrote into the lock last, None where that is nobody or cannot be read."""
    file.seek(0)
    try:
        fields = json.loads(file.read(4096))
        return Holder(str(fields["host"]), int(fields["pid"]), float(fields["started"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _write(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
