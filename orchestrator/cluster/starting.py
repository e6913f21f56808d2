"""Watch the servers of a local Ray while it starts: `ray.init` waits up to a minute for one that
has died."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import psutil

SERVERS = ("gcs_server", "raylet")
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # a raylet ends when one of them does
LOOK_S = 0.5
CALL = signal.SIGUSR2  # by which the thread that looks interrupts the one that waits


@dataclass(slots=True)
class _Watch:
    """seen: servers that ran. over: nobody waits any more. died: the one that is gone."""

    seen: dict[int, str] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    died: str | None = None

    def look_until_over(self) -> None:
        while not self.over.wait(LOOK_S):
            running = {one.pid: one.name() for one in _own_servers()}
            gone = [name for pid, name in self.seen.items() if pid not in running]
            self.seen.update(running)
            if gone:
                self.died = gone[0]
                signal.pthread_kill(threading.main_thread().ident or 0, CALL)
                return


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raise RuntimeError, within a second, when a server that was started inside dies."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch, before = _Watch(), signal.signal(CALL, _interrupt)
    thread = threading.Thread(target=watch.look_until_over, name="starting", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if watch.died:
            raise RuntimeError(f"its {watch.died} died while it was starting") from error
        raise
    finally:
        watch.over.set()
        thread.join()
        signal.signal(CALL, before)


def serves(process: psutil.Process, names: Collection[str] = (*SERVERS, *AGENTS)) -> bool:
    """Whether it runs and is a server of Ray, or an agent of one."""
    try:
        return process.name() in names and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _own_servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if serves(child, SERVERS)]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
