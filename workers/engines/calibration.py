"""The engine `calibration`: it serves no requests, it measures what the ranks' devices and links
can do.

`orchestrator calibrate` runs it as a deployment is run. It is no entry point, so that nobody is
offered it for a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from workers.messages import Built, EnginePlan, RankReport, Work
from workers.records import FABRIC, STEPS
from workers.versions import versions

if TYPE_CHECKING:
    from workers.rank import RankContext

LAYOUT = "calibration"
QUICK = "quick"  # the value of the placement's option "sweep" that asks for a few sizes only


class CalibrationEngine:
    """Measures a node."""

    processes: Literal["per_rank", "single"] = "per_rank"

    def __init__(self) -> None:
        self._context: RankContext | None = None
        self._quick = False

    def supports(self, plan: EnginePlan) -> str | None:
        return (
            None
            if plan.layout == LAYOUT
            else "it measures a node and serves nothing; `orchestrator calibrate` runs it"
        )

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        from workers.device import device_name

        self._context, self._quick = context, plan.placement.option("sweep") == QUICK
        return Built(context.rank, 0.0, None, 0, None, device_name(context.device), versions())

    def run(self, work: Work) -> RankReport:
        from workers.engines.calibration_sweep import measure, sweep_for

        assert self._context is not None, "build first"
        rows = measure(self._context, sweep_for(self._context.device, self._quick))
        return RankReport(
            self._context.rank, None, STEPS.make([]), None, 0, fabric=FABRIC.make(rows)
        )

    def close(self) -> None:
        self._context = None
