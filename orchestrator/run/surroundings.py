"""What a run needs besides its plan."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.store.folders import folder_of
from orchestrator.store.store import Store


def check_surroundings(experiment: Experiment) -> pa.Table | None:
    """The calibration, table FABRIC, if there is one.

    Raises UserError where a calibration that is asked for cannot be read, or no run can be added to
    the folder of the results: see `Store.check_open`.
    """
    calibration = fabric.look_up(experiment.fabric, experiment.result_dir)
    Store(folder_of(experiment)).check_open()
    return calibration


def settled_counts(store: Store) -> Mapping[str, int]:
    """Load, as "short.c8", -> requests of a run, as the pilots of earlier commands settled it."""
    found = store.manifest().get("num_prompts")
    return found if isinstance(found, dict) else {}
