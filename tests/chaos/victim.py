"""A driver that things happen to: of its second cell, one phase takes a while.
Usage: victim.py SITE RESULT_DIR PHASE [ADDRESS].

It tells each phase on stdout as it begins, so that who strikes knows when.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))

import fake_engine
from driver_inputs import deployment

from orchestrator.analysis.summary import Measured
from orchestrator.cluster.connection import Cluster, join
from orchestrator.errors import Stop, UserError
from orchestrator.experiment import Experiment
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.run import driver
from orchestrator.store.live import Live
from orchestrator.store.store import Store
from workers.messages import Work

PAUSE_S = 0.2  # before each sync of a file
FULL = "CHAOS_DISK_IS_FULL"  # in the environment: no byte fits while the slow cell is written
NAMES = {
    "building": "building",
    "warming up": "warm-up",
    "start 1/1 run 1/1": "measuring",
    "observing": "observing",
}


class Lines:
    """Progress as lines on stdout."""

    def begin(self, live: Live) -> None: ...

    def connected(self, cluster: Cluster) -> None: ...

    def phase(self, deployment: str, cell: str, what: str) -> None:
        if what == "building" or cell.endswith("c2"):
            tell(NAMES.get(what, what))

    def finished(self, run: Measured) -> None:
        print("finished", run.cell.max_concurrency, run.status, run.reason, flush=True)

    def note(self, line: str) -> None:
        print("note", line, flush=True)


def tell(phase: str) -> None:
    print("phase", phase, flush=True)


def slow_writing(write: Callable[..., Any]) -> Callable[..., Any]:
    """`Store.write_run`, which says when the slow cell is written and takes its time for it."""

    @functools.wraps(write)
    def slowly(store: Store, run: Any, *arguments: Any) -> Any:
        if run.cell.max_concurrency != 2 or not fake_engine.PAUSE_S:
            return write(store, run, *arguments)
        tell("writing")
        sync = os.fsync
        os.fsync = lambda fd: (time.sleep(PAUSE_S), sync(fd))[1]  # type: ignore[assignment]
        try:
            with full_disk() if FULL in os.environ else contextlib.nullcontext():
                return write(store, run, *arguments)
        finally:
            os.fsync = sync

    return slowly


@contextlib.contextmanager
def full_disk() -> Any:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def planned(slow: str) -> PlannedDeployment:
    """Two cells. slow: the phase in which the engine pauses."""

    def order(*phases: str) -> int:
        return fake_engine.PAUSE if slow in phases else fake_engine.SERVE

    orders = [(fake_engine.SERVE, 0), (order("measuring", "observing"), 0)]
    one = deployment("tp1", orders, build_order=order("building"))
    first, second = one.cells
    warmup = Work(fake_engine.requests(1, order("warm-up")), 1)
    return replace(one, cells=(first, replace(second, warmup=warmup)))


def main(site: str, folder: str, phase: str, address: str | None = None) -> int:
    sys.path.append(site)
    if phase == "writing":
        Store.write_run = slow_writing(Store.write_run)  # type: ignore[method-assign]
    driver.connect = functools.partial(driver.connect, dashboard=False)  # type: ignore[assignment]
    asked, stop = Experiment(result_dir=Path(folder), timeout=60, num_warmups=1), Stop()
    tell("connecting")
    try:
        with stop, join(address) if address else contextlib.nullcontext() as cluster:
            driver.run_experiment([planned(phase)], asked, Lines(), cluster)
    except KeyboardInterrupt:
        return stop.status
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
