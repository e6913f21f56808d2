"""Whether an experiment asks for other engines than there are by themselves."""

from __future__ import annotations

from orchestrator.experiment.asked import Experiment
from orchestrator.experiment.techniques import SWITCHES

# Those in which a prediction is the run's.
PREDICTED = ("chunked_prefill_size", "products", "pdl")


def is_changed(experiment: Experiment) -> bool:
    """Whether an engine is asked to be another one than factors are fitted to."""
    asked = (getattr(experiment, name) for name in SWITCHES if name not in PREDICTED)
    return bool(experiment.engine_arg) or any(one not in (None, "auto") for one in asked)
