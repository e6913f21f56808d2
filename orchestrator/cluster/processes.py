"""Find the processes that were started here, and wait for them to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence

import psutil


def children() -> list[psutil.Process]:
    """Every process that descends from this one."""
    return list(psutil.Process().children(recursive=True))


def processes(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of `pids` that still run."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def end(running: Sequence[psutil.Process], patience_s: float = 5.0) -> None:
    """Wait for processes that were told to end; kill those that do not."""
    _, alive = psutil.wait_procs(running, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience_s)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C inside, so that cleaning up is finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
