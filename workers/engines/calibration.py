"""The engine `calibration`: it serves nothing, it measures what the devices and links of the ranks
can do.

`orchestrator calibrate` runs it as any engine is run. It is not an entry point, so it is not listed
among the engines for a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from workers.engines.calibration_parts import Part, parts
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
        """Measure a part, or everything at once. The report's `fabric` has what this rank found in
        all parts so far. The work has no requests."""
        from workers.engines.node_sweep import Measurement
        from workers.engines.node_timing import sweep_for

        assert self._context is not None, "build first"
        context = self._context
        sweep = sweep_for(context.device, self._quick)
        measurement = self._measurement = self._measurement or Measurement(context, sweep)
        for part in (work.part,) if isinstance(work, Part) else parts(context.placement.num_ranks):
            measurement.take(part)
        found = FABRIC.make(measurement.found())
        if not isinstance(work, Part):
            self._end()
        return RankReport(context.rank, None, STEPS.make([]), None, 0, fabric=found)

    def close(self) -> None:
        """Drop the context, and what was measured."""
        self._end()
        self._context = None

    def _end(self) -> None:
        if self._measurement is not None:
            self._measurement.end()
        self._measurement = None
