"""The folder of a search of rates, as the driver would leave it."""

from __future__ import annotations

from pathlib import Path

from summaries import CELL, measured

from orchestrator.analysis.goodput import RATES, FoundRate
from orchestrator.analysis.summary import MEASURED
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.schema import CellKey
from orchestrator.store.store import Store

SLO = "ttft:p99:2000"
TRIED = (2400.0, 1200.0, 1800.0)  # the second one is met


def found(strategy: str = "tp2", **given: object) -> FoundRate:
    """1200 requests/s under two GPUs, unless told."""
    fields = {
        "cell": CellKey(**{**CELL, "strategy": strategy, "engine": given.pop("engine", "torch")}),
        "slo": SLO,
        "arriving": "requests",
        "rate": 1200.0,
        "rate_per_gpu": 600.0,
        "output_throughput": 4000.0,
        "missed_rate": 1800.0,
        "missed_by": f"1.31x the limit of {SLO}",
        "closed_rate": 2400.0,
        "tried_rates": TRIED,
        "tried_met": (False, True, False),
        "reason": None,
        **given,
    }
    return FoundRate(**fields)


NONE_MET = found(
    "pp2",
    rate=None,
    rate_per_gpu=None,
    output_throughput=None,
    missed_rate=1200.0,
    tried_met=(False, False, False),
    reason="out of memory",
)


def write_search(root: Path) -> Path:
    """A closed loop and two rates, under two layouts, and what was found. Returns `root`."""
    for rate in (None, 1200.0, 2400.0):
        store = Store(root / f"tiny-{rate or 0:.0f}")
        store.create()
        for layout in ("tp2", "pp2"):
            deployment = Deployment("tiny", layout, "torch", "bfloat16")
            run = Run(Cell(deployment, Scenario("short", 256, 128), 8), 0, 0)
            row = measured(experiment=store.name, strategy=layout, request_rate=rate)
            store.write_run(run, MEASURED.make([row]), {})
    Store(root).write_rates(RATES.make([NONE_MET, found()]))
    return root
