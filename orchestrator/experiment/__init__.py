"""What was asked: an experiment, its deployments, their cells and runs."""

from orchestrator.experiment.asked import DIFFERENCE, OF_DATASET, SCENARIOS, Experiment
from orchestrator.experiment.cells import (
    PRESETS,
    Cell,
    Deployment,
    Run,
    Scenario,
    layout_name,
    preset_names,
)
from orchestrator.experiment.changed import is_changed
from orchestrator.experiment.lengths import Lengths, Window
from orchestrator.experiment.techniques import IN_TRAINING, SWITCHES, TECHNIQUES, Technique
from orchestrator.experiment.training import ONLY_GENERATES, ONLY_TRAINS

__all__ = [
    "DIFFERENCE",
    "IN_TRAINING",
    "OF_DATASET",
    "ONLY_GENERATES",
    "ONLY_TRAINS",
    "PRESETS",
    "SCENARIOS",
    "SWITCHES",
    "TECHNIQUES",
    "Cell",
    "Deployment",
    "Experiment",
    "Lengths",
    "Run",
    "Scenario",
    "Technique",
    "Window",
    "is_changed",
    "layout_name",
    "preset_names",
]
