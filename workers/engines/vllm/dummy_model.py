"""The folder in which vLLM finds a model that has no checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from strategies.hub_config import ARCHITECTURES
from strategies.shapes import ModelShape


def dummy_model(model: ModelShape, cache: Path) -> Path:
    """A folder with the config.json of a model, beside vLLM's caches: equal models have the same
    one. The key of what vLLM compiles has its path, so a folder that is new in every start would
    let each of them compile again."""
    text = json.dumps(config_of(model), sort_keys=True)
    folder = cache / "orchestrator" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (config := folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            file.write(text)
        os.replace(file.name, config)  # other replicas may be about to read it
    return folder


def config_of(model: ModelShape) -> Mapping[str, object]:
    """The config.json of a model."""
    from workers.engines.transformers_config import shape_to_config

    config: dict[str, object] = shape_to_config(model).to_dict()
    names = (name for name, family in ARCHITECTURES.items() if family == model.family)
    return {**config, "architectures": [next(names)]}
