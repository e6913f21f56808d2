"""Find the processes that were started here, and wait for them to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence

import psutil

from orchestrator.errors import STOPPING

LAST_S = 0.3  # for a process that was told to end, before it is killed


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


def kill(running: Iterable[psutil.Process]) -> None:
    """Kill processes without waiting for their end."""
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end(running: Sequence[psutil.Process], patience_s: float = LAST_S) -> None:
    """Wait for processes that were told to end; kill those that do not."""
    _, alive = psutil.wait_procs(running, timeout=patience_s)
    kill(alive)
    psutil.wait_procs(alive, timeout=5.0)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals that stop a command, so that cleaning up is finished. The first that
    came is delivered at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPPING}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handled:
        signal.signal(number, lambda came, _: held.append(came))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Give the signals that stop a command back to those who handled them, whoever took them
    inside: Ray does, in Python and in C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
