"""Which results belong together: what was asked, without what may grow from command to command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

# Fields that may differ between commands whose results belong in one folder.
FREE_FIELDS = {
    "strategy",
    "engine",
    "max_concurrency",
    "scenario",
    "num_starts",
    "num_runs",
    "result_dir",
    "metadata",
    "address",
    "save_detailed",
    "save_spans",
    "timeout",
    "until_ci",
    "max_starts",
    "difference",
    "goodput",
    "ablate",
    "fabric",
    "allow_other_node",
}
PRESETS = Path(__file__).parent / "presets"


Tokens = Annotated[int, Field(gt=0, le=10_000_000)]
Count = Annotated[int, Field(gt=0, le=10_000)]
LONGEST_S = 1e6  # 12 days; a wait that is much longer overflows in the libraries below


def identity_of(experiment: Experiment) -> str:
    """Ten hex digits of everything that results must agree on to be compared.

    Lists that grow from command to command are left out. Files count by what is in them: a dataset
    that was edited, or weights that were replaced, are another experiment.
    """
    unused = {"request_rate", "burstiness"} if experiment.request_rate is None else set()
    unused |= set() if experiment.nsys else {"nsys"}
    fields = experiment.model_dump(mode="json", exclude=FREE_FIELDS | unused)
    model = None if experiment.model in preset_names() else Path(experiment.model)
    paths = [path for path in (experiment.dataset_path, model) if path]
    stamps = {str(path): stamp(path) for path in paths if path.exists()}
    return digest({**fields, "files": stamps} if stamps else fields)


def preset_names() -> list[str]:
    """Presets: a config alone (`NAME.json`) or a whole checkpoint (`NAME/`). A folder of the same
    name elsewhere is not meant by it."""
    return sorted(path.stem for path in PRESETS.glob("*.json")) + sorted(
        path.parent.name for path in PRESETS.glob("*/config.json")
    )


def stamp(path: Path) -> str:
    """A text that changes when a dataset file or a folder of weights changes: a hash of the file's
    content, or of the sizes and times of the files in the folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    return digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def digest(value: Any) -> str:
    """Ten hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
