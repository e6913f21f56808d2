"""Which results belong together: what was asked, without what may grow from command to command."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.experiment import OF_DATASET, ONLY_TRAINS, SWITCHES, Experiment, preset_names
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
    "slo",
    "find_rate",
    "rate_runs",
    "ablate",
    "technique",
    "ncu",
    "fabric",
    "allow_other_node",
    "wait_for_resources",
    "on_node_loss",
    "save_checkpoint",
    "checkpoint_interval",
}
# Fields that count where they are not as they are by default.
OF_PRECISION = ("quantization", "kv_cache_dtype", "precision_policy")
OF_TRAINING = ("workload", *(name for name in ONLY_TRAINS if name not in FREE_FIELDS))
IF_ASKED = (
    *("nsys", "engine_arg", "range_ratio"),
    *(*OF_PRECISION, *OF_DATASET, *SWITCHES, *OF_TRAINING),
)
# What all runs of one folder must agree on beside it: kinds of devices, and the software that
# executes the layouts.
DECISIVE = (
    "device",
    "shard-orchestrator",
    "torch",
    "triton",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "ray",
    "transformers",
    "deepspeed",
)
MadeBy = tuple[str, str, str]  # strategy, engine, ablation
# By engine, how it ran before there was a choice. Results of then tell nothing of it.
BEFORE = {"torch": {"overlap": "off", "products": "cublas", "pdl": "off"}}
# Files of a dataset's folder, or of one with text to train on.
OF_ROWS = frozenset(
    {".jsonl", ".json", ".csv", ".parquet", ".arrow", ".gz", ".txt", ".text", ".md"}
)


def identity_of(experiment: Experiment) -> str:
    """Ten hex digits of everything that results must agree on to be compared.

    Lists that grow from command to command are left out. Files count by what is in them: a dataset
    that was edited, or weights that were replaced, are another experiment.
    """
    is_closed = experiment.request_rate is None and not experiment.find_rate
    unused = {"request_rate", "burstiness"} if is_closed else set()
    unused |= {name for name in IF_ASKED if not _is_asked(experiment, name)}
    fields = experiment.model_dump(mode="json", exclude=FREE_FIELDS | unused)
    model = None if experiment.model in preset_names() else Path(experiment.model)
    paths = {"dataset_path": experiment.dataset_path, "data": experiment.data, "model": model}
    there = {name: path for name, path in paths.items() if path and path.exists()}
    # The same file is the same experiment, from wherever its path is seen.
    fields |= {name: path.resolve().name for name, path in there.items() if name in fields}
    stamps = {name: stamp(path) for name, path in there.items()}
    if "vllm" in experiment.engine and "comm" in experiment.ablate:
        fields["unfused"] = True  # its whole runs too, see `unfused` in workers/engines/vllm
    return digest({**fields, "files": stamps} if stamps else fields)


def decisive_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of `DECISIVE`."""
    devices = sorted({device["name"] for device in manifest.get("topology") or ()})
    there = {"device": devices, **(manifest.get("versions") or {})}
    return {name: there[name] for name in DECISIVE if there.get(name)}


def switches_told(runs: pa.Table | None) -> dict[MadeBy, dict[str, str]]:
    """Of what made the runs of a summary, the switches that they tell of, or that are known."""
    found = dict[MadeBy, dict[str, str]]()
    for one in runs.to_pylist() if runs is not None else []:
        told = {name: one[name] for name in SWITCHES if one.get(name) is not None}
        by = one["strategy"], one["engine"], one["ablation"]
        found.setdefault(by, dict(BEFORE.get(one["engine"], {}))).update(told)
    return found


def changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What both tell of, and differently."""
    return [name for name in was if now.get(name) not in (None, was[name])]


def _is_asked(experiment: Experiment, name: str) -> bool:
    default = Experiment.model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(experiment, name) != default)


def stamp(path: Path) -> str:
    """A text that changes when a dataset or a folder of weights changes: a hash of what is in a
    file or in the files of a dataset, and of the sizes and times of weights, which are large."""
    if path.is_file():
        return _content(path)
    weights = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    if any(file.suffix == ".safetensors" for file in weights):
        found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
        return digest(found)
    rows = sorted(file for file in path.rglob("*") if _is_read(file))
    return digest([(file.name, _content(file)) for file in dict.fromkeys((*weights, *rows))])


def _is_read(file: Path) -> bool:
    """Whether a file of a folder may have rows or text of a dataset."""
    return file.suffix.lower() in OF_ROWS and file.is_file()


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
