"""Documents to train on: plain text, and a column of any dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.plan.datasets.files import CONTAINERS, PLAIN, naming, opened, rows, suffix_of
from orchestrator.plan.datasets.folders import holds_dataset

COLUMN = "text"  # what the published corpora call it
CARD = "readme"  # that describes the dataset beside it


def documents(
    path: Path, column: str | None = None, split: str | None = None
) -> Iterator[tuple[str, str]]:
    """(where it is, text) of every document at `path` that is not empty, in order: a file of text,
    or a folder of them, is one each; of a dataset (`files.rows`) each row is one.

    column: of a dataset, None: `text`. split: of a folder. Raises UserError for what cannot be
    read, and for a row without the column.
    """
    plain = _plain_files(path)
    if not plain:
        yield from _column(path, COLUMN if column is None else column, split)
        return
    for given, name in ((column, "column"), (split, "split")):
        if given is not None:
            raise UserError(f"{path} is plain text, which has no {name} '{given}'; leave it out")
    for file in plain:
        with naming(file), opened(file) as stream:
            text = stream.read()
        if "\0" in text:
            raise UserError(f"the dataset {file} holds zero bytes, so it is no text; {CONTAINERS}")
        if text.strip():
            yield str(file), text


def _plain_files(path: Path) -> Sequence[Path]:
    """The files of text at `path`, by name; none where it is no text, or describes a dataset.
    Raises UserError for a folder of both."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    plain = [one for one in found if suffix_of(one) in PLAIN]
    if not plain or not path.is_dir() or not holds_dataset(path):
        return plain
    for one in plain:
        if one.stem.lower() != CARD:
            raise UserError(
                f"the folder {path} holds a dataset and also text, as {one.name}; give one of them"
            )
    return ()


def _column(path: Path, column: str, split: str | None) -> Iterator[tuple[str, str]]:
    for row in rows(path, split):
        if column not in row.fields:
            there = ", ".join(map(str, row.fields)) or "none"
            raise UserError(
                f"{row.where}: there is no column '{column[:60]}'; its columns are {there[:200]}; "
                "name the one that has the text as --data-column"
            )
        if row.has(column) and (text := row.text(column)).strip():
            yield row.where, text
