"""Whether an experiment asks for other engines than there are by themselves."""

from __future__ import annotations

from orchestrator.experiment.asked import Experiment
from orchestrator.experiment.techniques import SWITCHES


def is_changed(experiment: Experiment) -> bool:
    """Whether an engine is asked to be another one than it is by itself, which is what factors are
    fitted to. How prompts are cut is predicted."""
    asked = (getattr(experiment, name) for name in SWITCHES if name != "chunked_prefill_size")
    return bool(experiment.engine_arg) or any(one not in (None, "auto") for one in asked)
