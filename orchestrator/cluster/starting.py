"""Watch the servers of a local Ray while it starts: `ray.init` waits up to a minute for one that
has died."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import psutil

SERVERS = ("gcs_server", "raylet")
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # a raylet ends when one of them does
LOOK_S = 0.1
CALL = signal.SIGUSR2  # by which the thread that looks interrupts the one that waits
REACT_S = 1.5  # for the thread that waits; in a call to a GCS that is gone it cannot
BAD_INPUT = 2  # the exit status


@dataclass(slots=True)
class _Watch:
    """keep: told why the session's folder is kept. seen: servers that ran. over: nobody waits any
    more. died: the one that is gone."""

    keep: Callable[[str], None]
    seen: dict[int, str] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    died: str | None = None

    def look_until_over(self) -> None:
        while not self.over.wait(LOOK_S):
            running = _own_servers()
            gone = [name for pid, name in self.seen.items() if pid not in running]
            gone += [name for name, is_alive in running.values() if not is_alive]
            self.seen.update({pid: name for pid, (name, _) in running.items()})
            if gone:
                self.died = gone[0]
                signal.pthread_kill(threading.main_thread().ident or 0, CALL)
                if not self.over.wait(REACT_S):
                    self._end()
                return

    def interrupt(self, *_: object) -> None:
        """The handler of CALL: end the wait, unless it is over."""
        if not self.over.is_set():
            raise KeyboardInterrupt

    @property
    def why(self) -> str:
        """What happened, in words."""
        return f"its {self.died} died while it was starting"

    def _end(self) -> None:
        """End this process, which nothing else can do: `ray.init` does not return. What was started
        is ended by the session's guard."""
        self.keep(self.why)
        print(f"error: Ray could not be started: {self.why}", file=sys.stderr, flush=True)
        os._exit(BAD_INPUT)


@contextlib.contextmanager
def watched(keep: Callable[[str], None]) -> Iterator[None]:
    """Raise RuntimeError, at once, when a server that was started inside dies. Where that cannot be
    raised, this process is ended with one line. keep: told why, before that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(keep)
    before = signal.signal(CALL, watch.interrupt)
    thread = threading.Thread(target=watch.look_until_over, name="starting", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if watch.died:
            raise RuntimeError(watch.why) from error
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


def _own_servers() -> dict[int, tuple[str, bool]]:
    """Process id -> (name, whether it runs) of every server below this process. One that has ended
    is there until it is waited for."""
    found = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in SERVERS:
                found[child.pid] = child.name(), serves(child, SERVERS)
    return found
