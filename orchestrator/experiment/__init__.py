"""What was asked: an experiment, its deployments, their cells and runs."""

from orchestrator.experiment.asked import (
    DIFFERENCE,
    LEVELS,
    SCENARIOS,
    Experiment,
    check_levels,
    parse_levels,
)
from orchestrator.experiment.cells import (
    PRESETS,
    Cell,
    Deployment,
    Run,
    Scenario,
    layout_name,
    preset_names,
)
from orchestrator.experiment.lengths import Lengths, Window

__all__ = [
    "DIFFERENCE",
    "LEVELS",
    "PRESETS",
    "SCENARIOS",
    "Cell",
    "Deployment",
    "Experiment",
    "Lengths",
    "Run",
    "Scenario",
    "Window",
    "check_levels",
    "layout_name",
    "parse_levels",
    "preset_names",
]
