"""Hugging Face dataset folders: as `save_to_disk` writes them, and as the hub keeps them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError

STATE, SPLITS = "state.json", "dataset_dict.json"  # of `Dataset` and `DatasetDict`
DESCRIPTIONS = frozenset({"dataset_info", "dataset_infos"})  # JSON, and no rows
SHOWN = 8  # folders that an error names
# Splits as the hub knows them by the names of files: train-00000-of-00002.parquet, test.jsonl.
_SPLIT = re.compile(r"([A-Za-z0-9_.]+?)(?:-\d+-of-\d+)?\.(?:jsonl|json|csv|parquet)(?:\.gz)?")


def holds_dataset(folder: Path) -> bool:
    """Whether `files_of` finds files in a folder."""
    saved = any((folder / name).is_file() for name in (STATE, SPLITS))
    return saved or bool(_hub_splits(folder))


def files_of(folder: Path, split: str | None) -> Sequence[Path]:
    """The files of one split of a folder, in order. split: None where there is one alone. Raises
    UserError where there is no such split, or several and none was named."""
    if (folder / STATE).is_file():
        return _saved(folder, split)
    splits = _saved_splits(folder) if (folder / SPLITS).is_file() else _hub_splits(folder)
    if not splits:
        raise UserError(f"the folder {folder} holds no dataset; {_way_out(folder)}")
    if split is None and len(splits) > 1:
        raise UserError(f"{folder} has the splits {', '.join(splits)}; name one: --dataset-split")
    name = next(iter(splits)) if split is None else split
    if name not in splits:
        raise UserError(f"{folder} has no split '{name}'; it has {', '.join(splits)}")
    return splits[name]


def _way_out(folder: Path) -> str:
    """What to give instead of a folder without a dataset: the hub keeps several in folders of it,
    one a configuration."""
    inside = sorted(one for one in folder.iterdir() if one.is_dir() and os.access(one, os.R_OK))
    if there := [one.name for one in inside if holds_dataset(one)]:
        more = " ..." if len(there) > SHOWN else ""
        return f"these folders in it do, so give one of them: {', '.join(there[:SHOWN])}{more}"
    return (
        f"a dataset is a file, or a folder with {STATE}, {SPLITS} or data/train-*.parquet; to "
        "train on, one with files of text too"
    )


def _saved(folder: Path, split: str | None) -> Sequence[Path]:
    """The files of one saved `Dataset`, as its state lists them."""
    state = _json(folder / STATE)
    found = state.get("_split")
    if split is not None and split != found:
        raise UserError(f"{folder} is one dataset, of the split '{found}'; leave the split out")
    try:
        return [folder / str(one["filename"]) for one in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / STATE} does not list the files of a dataset") from error


def _saved_splits(folder: Path) -> dict[str, Sequence[Path]]:
    names = _json(folder / SPLITS).get("splits")
    if not isinstance(names, list):
        raise UserError(f"{folder / SPLITS} does not list the splits of a dataset")
    return {str(name): _saved(folder / str(name), None) for name in names}


def _hub_splits(folder: Path) -> dict[str, Sequence[Path]]:
    """The files of each split, of the folder `data` where there is one. What the hub has converted
    to Parquet is numbered in a folder that has the name of the split."""
    data = folder / "data" if (folder / "data").is_dir() else folder
    found: dict[str, list[Path]] = {}
    for file in sorted(data.iterdir()):
        match = _SPLIT.fullmatch(file.name)
        if match and file.is_file() and match[1] not in DESCRIPTIONS:
            split = folder.name if match[1].isdecimal() else match[1]
            found.setdefault(split, []).append(file)
    return dict(found)


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"{file} is no object of JSON")
    return read
