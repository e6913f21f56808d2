"""A rank that stops in the middle of its run, until it may go on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workers.engines.training import watching
from workers.engines.training.engine import TorchTrainer
from workers.messages import RankReport, TrainingWork

STOPS_AFTER = 3  # steps of the run
RANK = 1


class StuckTrainer(TorchTrainer):
    """Rank 1 takes a step and waits for the file that the work names to save to."""

    def run(self, work: TrainingWork) -> RankReport:
        assert self._trainer is not None
        assert self._context is not None
        trainer: Any = self._trainer
        take, taken, gate = trainer.step, [0], Path(work.save or "")

        def step(*arguments: Any) -> Any:
            taken[0] += 1
            if taken[0] == STOPS_AFTER + 1 and self._context and self._context.rank == RANK:
                while not gate.exists():
                    time.sleep(0.01)
            return take(*arguments)

        trainer.step = step
        self._traffic = []  # nothing is counted before
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watching, "LOOK_S", 0.1)
            return super().run(replace(work, save=None))
