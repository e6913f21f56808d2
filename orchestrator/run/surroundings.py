"""What a run needs besides its plan."""

from __future__ import annotations

import pyarrow as pa

from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.store.folders import check_version, folder_of


def check_surroundings(experiment: Experiment) -> pa.Table | None:
    """Raise UserError where a calibration that is asked for cannot be read, or the folder of the
    results holds those of another version. Returns the calibration, in the schema FABRIC, if there
    is one."""
    calibration = fabric.look_up(experiment.fabric, experiment.result_dir)
    check_version(folder_of(experiment))
    return calibration
