"""What travels with an experiment to a cluster: its fields, its files, and plug-ins."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import yaml

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, preset_names
from orchestrator.plan.datasets import registry as datasets
from orchestrator.store.folders import folder_of
from strategies import registry as layouts
from workers import engines
from workers.units import format_bytes
from workers.versions import PROJECT

CONFIG = "experiment.yaml"
GROUPS = (layouts.GROUP, engines.GROUP, engines.TRAINERS, datasets.GROUP)
FILES = {
    "dataset_path": "dataset",
    "data": "data",
    "fabric": "fabric",
}  # field -> the folder it travels in
MOST_BYTES = 100 << 20  # Ray takes 512 MB and keeps all of it in the head's memory
# Of the machine that submits, not of the experiment.
LEFT_OUT = {"address", "result_dir"}


def parcel(experiment: Experiment, folder: Path) -> str:
    """Write into `folder` what a driver elsewhere needs: CONFIG, the files that the experiment
    names, and the plug-ins installed here. Returns the name of the folder that its results will
    have there.

    Raises UserError for a checkpoint without an absolute path, which must be on every node, for
    a file or folder of more than MOST_BYTES, and for a plug-in without files.
    """
    _check_model(experiment.model)
    for flag, path in (
        ("--save-checkpoint", experiment.save_checkpoint),
        ("--resume-from", experiment.resume_from),
    ):
        if path and not path.is_absolute():
            raise UserError(
                f"{flag} {path} would end with the job; give an absolute path on the cluster"
            )
    fields = experiment.model_dump(mode="json", exclude_defaults=True, exclude=LEFT_OUT)
    for field, place in FILES.items():
        path = getattr(experiment, field)
        if path is not None:
            fields[field] = str(_copied(path.resolve(), folder, place))
    (folder / CONFIG).write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    for plugin in plugins():
        _copy_plugin(plugin, folder)
    with contextlib.chdir(folder):  # a file counts by its path too, and there it is this one
        return folder_of(Experiment(**fields)).name


def plugins() -> Iterator[Distribution]:
    """The packages other than ours that add strategies, engines or formats of datasets."""
    for one in distributions():
        groups = {point.group for point in one.entry_points}
        if groups.intersection(GROUPS) and one.metadata["Name"] != PROJECT:
            yield one


def _check_model(model: str) -> None:
    path = Path(model)
    if model not in preset_names() and not path.is_absolute():
        raise UserError(
            f"--model {model} is a folder of this machine; a job needs a checkpoint under the same "
            "absolute path on every node"
        )


def _copied(path: Path, folder: Path, place: str) -> Path:
    """Where a file or folder lies in the parcel, relative to it. Raises UserError where there is
    none."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    _check_size(path)
    inside = Path(place) / path.name
    (folder / place).mkdir(exist_ok=True)
    if path.is_dir():  # hidden files may hold secrets, and Ray would heed a .gitignore
        shutil.copytree(path, folder / inside, ignore=shutil.ignore_patterns(".*"))
    else:
        shutil.copy2(path, folder / inside)
    return inside


def _check_size(path: Path) -> None:
    files = (path,) if path.is_file() else path.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > MOST_BYTES:
        raise UserError(
            f"{path} has {format_bytes(size)}, and {format_bytes(MOST_BYTES)} may travel with a "
            "job; put it on the nodes and run `orchestrator submit --address auto` there"
        )


def _copy_plugin(plugin: Distribution, folder: Path) -> None:
    """Its modules, and the notes by which entry points are found. An editable package is copied
    from where it is."""
    modules = {point.module.partition(".")[0] for point in plugin.entry_points}
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(
                f"the plug-in {plugin.metadata['Name']} has no file {name} that could travel with "
                "a job; install it on the nodes and uninstall it here"
            )
        origin = Path(spec.origin)
        if spec.submodule_search_locations:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin.parent, folder / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(origin, folder)
    metadata, points = plugin.read_text("METADATA"), plugin.read_text("entry_points.txt")
    notes = folder / f"{plugin.metadata['Name'].replace('-', '_')}-{plugin.version}.dist-info"
    notes.mkdir(exist_ok=True)
    for file, text in (("METADATA", metadata), ("entry_points.txt", points)):
        if text:
            (notes / file).write_text(text, encoding="utf-8")
