"""The rows of a dataset, from any container: JSON lines, a JSON list, CSV, Parquet, Arrow, each
also gzipped where that is usual, and a folder of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from orchestrator.errors import UserError
from orchestrator.plan.datasets.folders import files_of
from orchestrator.plan.datasets.rows import Row

CONTAINERS = (
    "a dataset is JSON lines, a JSON list, CSV, Parquet or Arrow (.gz too), or a folder of Hugging "
    "Face datasets"
)
GZIP, PARQUET, ARROW = b"\x1f\x8b", b"PAR1", b"ARROW1"
CSV_BLOCK = 16 << 20  # bytes, of which no row may have more


def rows(path: Path, split: str | None = None) -> Iterator[Row]:
    """Every row of the file or folder at `path`, read as it is asked for.

    split: of a folder. Raises UserError, with the line where there is one, for what cannot be read.
    """
    if path.is_dir():
        for file in files_of(path, split):
            yield from rows(file)
        return
    if split is not None:
        raise UserError(f"{path} is a file, which has no splits; leave dataset_split out")
    with naming(path):
        yield from _rows_of_file(path)


def _rows_of_file(path: Path) -> Iterator[Row]:
    if path.exists() and not path.is_file():  # a device may have no end
        raise UserError(f"the dataset {path} is not a file; {CONTAINERS}")
    with path.open("rb") as stream:
        begin = stream.read(len(ARROW))
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if begin.startswith(PARQUET):
        return _parquet(path)
    if begin.startswith(ARROW) or suffix == ".arrow":
        return _arrow(path)
    return _csv(path, suffix) if suffix in (".csv", ".tsv") else _json(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make a UserError of what reading a file raises."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"the dataset {path} is not UTF-8 text; {CONTAINERS}") from error
    except pa.ArrowException as error:
        text = " ".join(str(error).split())
        raise UserError(f"the dataset {path} cannot be read: {text[:300]}") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the dataset {path} cannot be read: {reason}") from error


# -- JSON


def _json(path: Path) -> Iterator[Row]:
    with opened(path) as stream:
        if _first_character(stream) == "[":
            yield from _json_list(path, stream.read())
        else:
            yield from _json_lines(path, stream)


def opened(path: Path) -> TextIO:
    """A file of text, gzipped or not. Windows tools begin a text with a mark, which is left
    out."""
    with path.open("rb") as stream:
        zipped = stream.read(len(GZIP)) == GZIP
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def _first_character(stream: TextIO) -> str:
    """The first one that is no space. The stream is at its beginning again."""
    first = stream.read(1)
    while first.isspace():
        first = stream.read(1)
    stream.seek(0)
    return first


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Row(where, _object(_parsed(line, where, 0), where))


def _json_list(path: Path, text: str) -> Iterator[Row]:
    for number, entry in enumerate(_parsed(text, str(path), 1), start=1):
        where = f"{path}, entry {number}"
        yield Row(where, _object(entry, where))


def _parsed(text: str, where: str, first_line: int) -> Any:
    """first_line: 0 where `where` names the line already."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if first_line else ""
        raise UserError(
            f"{where}{line}: not valid JSON: {error.msg} (column {error.colno}); {CONTAINERS}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the JSON cannot be read: {error}") from error


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with fields, found {type(value).__name__}")
    return value


# -- tables


def _csv(path: Path, suffix: str) -> Iterator[Row]:
    """All values as text, so that a column's types do not depend on its first rows. A row's line is
    counted from the line ends in the cells before it; empty lines are not rows."""
    import pyarrow as pa
    from pyarrow import csv

    read = csv.ReadOptions(block_size=CSV_BLOCK)
    parse = csv.ParseOptions(newlines_in_values=True, delimiter="\t" if suffix == ".tsv" else ",")
    with csv.open_csv(path, read, parse) as first:
        names = first.schema.names
    texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    line = 2
    with csv.open_csv(path, read, parse, texts) as batches:
        for batch in batches:
            for fields in batch.to_pylist():
                yield Row(f"{path}, line {line}", fields, typed=False)
                line += 1 + sum(value.count("\n") for value in fields.values() if value)


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from _table(path, file.iter_batches())


def _arrow(path: Path) -> Iterator[Row]:
    """A stream, as `datasets` saves it, or a file."""
    from pyarrow import ipc

    with path.open("rb") as stream:
        if stream.read(len(ARROW)) == ARROW:
            file = ipc.open_file(stream)
            yield from _table(path, (file.get_batch(i) for i in range(file.num_record_batches)))
        else:
            stream.seek(0)
            yield from _table(path, ipc.open_stream(stream))


def _table(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    number = 1
    for batch in batches:
        for fields in batch.to_pylist():
            yield Row(f"{path}, row {number}", fields)
            number += 1
