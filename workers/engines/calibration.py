"""The engine `calibration`: it serves nothing, it measures what the devices and links of the ranks
can do.

`orchestrator calibrate` runs it as any engine is run. It is not an entry point, so it is not listed
among the engines for a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from workers.engines.calibration_parts import Part
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.records import FABRIC, STEPS
from workers.versions import versions

if TYPE_CHECKING:
    from workers.engines.node_sweep import Measurement
    from workers.rank import RankContext

CALIBRATION_LAYOUT = "calibration"  # the name of the layout of a plan for this engine
SWEEP_OPTION = "sweep"  # the placement's option that says how much is measured
QUICK = "quick"  # its value for a few sizes only; without the option all are measured


class CalibrationEngine:
    """Measures a node, one process a rank."""

    processes: Literal["per_rank", "single"] = "per_rank"

    def __init__(self) -> None:
        self._context: RankContext | None = None
        self._measurement: Measurement | None = None
        self._quick = False

    def supports(self, plan: EnginePlan) -> str | None:
        """None for a plan that `orchestrator calibrate` made."""
        if plan.layout == CALIBRATION_LAYOUT:
            return None
        return "it measures a node and serves nothing; `orchestrator calibrate` runs it"

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Nothing is loaded."""
        from workers.device import device_name

        self._context = context
        self._quick = plan.placement.option(SWEEP_OPTION) == QUICK
        return Built(context.rank, 0.0, None, 0, None, device_name(context.device), versions())

    def run(self, work: Work) -> RankReport:
        """Measure a part. The report's `fabric` has what this rank found in all parts so far. The
        work has no requests."""
        from workers.engines.node_sweep import Measurement
        from workers.engines.node_timing import sweep_for

        assert self._context is not None, "build first"
        assert isinstance(work, Part), "it measures part by part"
        context = self._context
        sweep = sweep_for(context.device, self._quick)
        measurement = self._measurement = self._measurement or Measurement(context, sweep)
        measurement.take(work.part)
        found = FABRIC.make(measurement.found())
        return RankReport(context.rank, None, STEPS.make([]), None, 0, fabric=found)

    def close(self) -> None:
        """Drop the context, and what was measured."""
        if self._measurement is not None:
            self._measurement.end()
        self._context = self._measurement = None
