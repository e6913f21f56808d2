"""A driver to be interrupted: a first run that ends, then one that hangs. Usage: interrupted_run.py
SITE RESULT_DIR."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

sys.path.append(sys.argv[1])

import fake_engine
from driver_inputs import deployment

from orchestrator.analysis.summary import Measured
from orchestrator.cluster.connection import Cluster
from orchestrator.experiment import Experiment
from orchestrator.run import driver
from orchestrator.store.live import Live


class Lines:
    """Progress as lines on stdout."""

    def begin(self, live: Live) -> None: ...

    def connected(self, cluster: Cluster) -> None: ...

    def phase(self, deployment: str, cell: str, what: str) -> None:
        print("phase", cell, what, flush=True)

    def finished(self, run: Measured) -> None:
        print("finished", run.cell.max_concurrency, flush=True)

    def note(self, line: str) -> None:
        print(line, flush=True)


driver.connect = functools.partial(driver.connect, dashboard=False)  # type: ignore[assignment]
planned = [deployment("tp1", [(fake_engine.SERVE, 0), (fake_engine.HANG, 0)])]
driver.run_experiment(planned, Experiment(result_dir=Path(sys.argv[2]), num_warmups=0), Lines())
