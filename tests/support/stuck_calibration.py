"""The engine `calibration`, of which rank 1 fails as it is told in the part that it is told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fake_engine import register

from workers.engines.calibration import CalibrationEngine
from workers.messages import Built, EnginePlan, RankReport, Work

NAME, RANK = "stuck_calibration", 1


def install(folder: Path) -> Path:
    """Make `folder`, once on the path, a place where this engine is installed."""
    return register(folder, NAME, "stuck_calibration:StuckCalibration")


class StuckCalibration(CalibrationEngine):
    """The options of the placement: `fault` is "raise" or "hang", `at` the part, and into the
    folder `pids` every rank writes a file named by its process."""

    def build(self, context: Any, plan: EnginePlan) -> Built:
        self._fault, self._at = plan.placement.option("fault"), plan.placement.option("at")
        Path(plan.placement.option("pids") or "", str(os.getpid())).touch()
        return super().build(context, plan)

    def run(self, work: Work) -> RankReport:
        assert self._context is not None
        if self._context.rank == RANK and getattr(work, "part", None) == self._at:
            if self._fault == "raise":
                raise ValueError("told to raise")
            time.sleep(3600)
        return super().run(work)
