"""The rows of a dataset, from any container: JSON lines, a JSON list, CSV, Parquet, Arrow, each
also gzipped where that is usual, and a folder of them."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from orchestrator.errors import UserError
from orchestrator.plan.datasets.folders import files_of
from orchestrator.plan.datasets.rows import Row

PLAIN = (".txt", ".text", ".md")  # text, to train on alone
CONTAINERS = (
    "a dataset is JSON lines, a JSON list or CSV (.gz too), Parquet, Arrow, or a folder of Hugging "
    f"Face datasets; to train on, text too ({', '.join(PLAIN)})"
)
GZIP, PARQUET, ARROW = b"\x1f\x8b", b"PAR1", b"ARROW1"
CELL = 16 << 20  # characters, of which no cell of CSV may have more


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
    suffix = suffix_of(path)
    if begin.startswith(PARQUET):
        return _parquet(path)
    if begin.startswith(ARROW) or suffix == ".arrow":
        return _arrow(path)
    return _csv(path, suffix) if suffix in (".csv", ".tsv") else _json(path)


def suffix_of(path: Path) -> str:
    """What a name ends in, in lower case, `.gz` left out."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


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
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the dataset {path} cannot be read: {reason}") from error


# -- JSON


def _json(path: Path) -> Iterator[Row]:
    with opened(path) as stream:
        if _first_character(stream) == "[":
            yield from _json_list(path, stream.read())
        else:
            yield from _json_lines(path, stream)


def opened(path: Path, newline: str = "\n") -> TextIO:
    """A file of text, gzipped or not. Windows tools begin a text with a mark, which is left out.
    newline: of `open`."""
    with path.open("rb") as stream:
        zipped = stream.read(len(GZIP)) == GZIP
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


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
        return json.loads(text, object_pairs_hook=_fields)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if first_line else ""
        raise UserError(
            f"{where}{line}: not valid JSON: {error.msg} (column {error.colno}); {CONTAINERS}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the JSON cannot be read: {error}") from error


def _fields(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object of JSON, of which Python would keep the last of two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice[:60]}' is there twice")
    return found


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with fields, found {type(value).__name__}")
    return value


# -- tables


def _csv(path: Path, suffix: str) -> Iterator[Row]:
    """All values as text, so that a column's types do not depend on its first rows. A row's line is
    the one it begins in; empty lines are not rows."""
    csv.field_size_limit(CELL)  # a long prompt has more than the 128 KiB that it allows by itself
    with opened(path, newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
        names: list[str] = []
        line = 1
        try:
            for cells in reader:
                where = f"{path}, line {line}"
                line = reader.line_num + 1
                if names and cells:
                    yield Row(where, _cells(names, cells, where), typed=False)
                names = names or _header(cells, where)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: not valid CSV: {error}") from error
        if not names:
            raise UserError(f"the dataset {path} cannot be read: it has no header")


def _header(cells: list[str], where: str) -> list[str]:
    """The names of the columns, which may have spaces around them."""
    return _once([name.strip() for name in cells], where)


def _once(names: list[str], where: str) -> list[str]:
    """The names of the columns. Raises UserError where two are the same."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: two columns are called '{twice[:60]}'; rename one")
    return names


def _cells(names: list[str], cells: list[str], where: str) -> Mapping[str, str]:
    if len(cells) != len(names):
        raise UserError(
            f"{where}: the dataset cannot be read: expected {len(names)} columns, got {len(cells)}"
        )
    return dict(zip(names, cells, strict=True))


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
        for fields in _values(path, batch):
            yield Row(f"{path}, row {number}", fields)
            number += 1


def _values(path: Path, batch: Any) -> Sequence[Mapping[str, Any]]:
    """The rows of a batch. Times are cut to microseconds, which is all that Python's have; those of
    a zone are the same moments in UTC, which needs no data of zones."""
    import pyarrow as pa

    _once(batch.schema.names, str(path))
    for place, one in enumerate(batch.schema):
        if pa.types.is_timestamp(one.type):
            times = batch.column(place).cast(pa.timestamp("us", one.type.tz and "UTC"), safe=False)
            batch = batch.set_column(place, one.name, times)
    try:
        found: Sequence[Mapping[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # a date that Python has not
        raise UserError(f"the dataset {path} cannot be read: {error}") from error
    return found
