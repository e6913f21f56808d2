"""Which results belong together: what was asked, without what may grow from command to command."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrator.experiment import Experiment, preset_names
from orchestrator.store.names import digest

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


def identity_of(experiment: Experiment) -> str:
    """Ten hex digits of everything that results must agree on to be compared.

    Lists that grow from command to command are left out. Files count by what is in them: a dataset
    that was edited, or weights that were replaced, are another experiment.
    """
    unused = {"request_rate", "burstiness"} if experiment.request_rate is None else set()
    unused |= {name for name in ("nsys", "engine_arg") if not getattr(experiment, name)}
    fields = experiment.model_dump(mode="json", exclude=FREE_FIELDS | unused)
    model = None if experiment.model in preset_names() else Path(experiment.model)
    paths = [path for path in (experiment.dataset_path, model) if path]
    stamps = {str(path): stamp(path) for path in paths if path.exists()}
    return digest({**fields, "files": stamps} if stamps else fields)


def stamp(path: Path) -> str:
    """A text that changes when a dataset file or a folder of weights changes: a hash of the file's
    content, or of the sizes and times of the files in the folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    return digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
