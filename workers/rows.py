"""Rows of tables as frozen dataclasses: a column is declared once, and none can be lost.

A field made by `column` is a column with its unit and meaning; one made by `group` is another row
type whose columns are part of this one, under names that its pattern gives them. The Arrow schema,
the page docs/columns.md and the comparison over runs are derived from these declarations. Making a
row without one of its columns, or with one that it does not have, is a TypeError.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Generic, Literal, TypeVar, dataclass_transform

import pyarrow as pa

SCHEMA_VERSION = 3
OverRuns = Literal["mean", "first", "max", "min"]
Better = Literal["higher", "lower"]
R = TypeVar("R")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
ARROW_TYPES: Mapping[Any, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
}


def column(
    meaning: str,
    unit: str = "",
    *,
    formula: str = "",
    source: str = "",
    over_runs: OverRuns | None = None,
    better: Better | None = None,
) -> Any:
    """A field of a row that is a column of its table.

    meaning: what it says, as a clause. unit: of a number, "1" where it is a count or a ratio.
    source: whose definition it is. over_runs: how the runs of a start become one value, and then
    the starts of a cell, in the comparison; None: it is not part of that. better: which of two
    values is the better one; None: neither is by itself.
    """
    about = {"meaning": meaning, "unit": unit, "formula": formula, "source": source}
    return dataclasses.field(metadata={**about, "over_runs": over_runs, "better": better})


def group(
    pattern: str = "{}",
    about: str = "",
    *,
    unit: str = "",
    source: str = "",
    better: Better | None = None,
) -> Any:
    """A field of a row that is a row itself. pattern: makes the names of its columns, as "tp_{}".

    about: put into the meanings of the columns, at "{about}". unit, source, better: for those that
    name none.
    """
    about_group = {"pattern": pattern, "about": about, "unit": unit}
    return dataclasses.field(metadata={**about_group, "source": source, "better": better})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(column, group))
def row(kind: type[R]) -> type[R]:
    """Make a row type of a class: frozen, its fields given by name."""
    return dataclass(frozen=True, kw_only=True)(kind)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a row type.

    path: the fields that lead to its value, from the row inwards. optional: whether it may be None.
    """

    name: str
    type: pa.DataType
    optional: bool
    unit: str
    meaning: str
    formula: str
    source: str
    over_runs: OverRuns | None
    better: Better | None
    path: tuple[str, ...]

    @property
    def field(self) -> pa.Field:
        """The Arrow field: nullable, with its unit in the metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit} if self.unit else None)

    def of(self, one: object) -> Any:
        """The value of this column in a row."""
        for name in self.path:
            one = getattr(one, name)
        return one


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def columns(kind: type[object]) -> tuple[Column, ...]:
    """Every column of a row type, those of its groups included, in the order of declaration."""
    key: Any = kind  # hashable, as every class is; mypy sees the __hash__ of its instances
    return _columns(key)


@cache
def _columns(kind: Any) -> tuple[Column, ...]:
    hints, fields = _hints(kind), dataclasses.fields(kind)
    return tuple(one for field in fields for one in _columns_of(field, hints[field.name]))


def _columns_of(field: dataclasses.Field[Any], hint: Any) -> Iterator[Column]:
    about = field.metadata
    if "pattern" not in about:
        yield Column(field.name, _arrow_type(hint), _is_optional(hint), **about, path=(field.name,))
        return
    for inner in columns(hint):
        yield dataclasses.replace(
            inner,
            name=about["pattern"].format(inner.name),
            unit=inner.unit or about["unit"],
            meaning=inner.meaning.replace("{about}", about["about"]),
            source=inner.source or about["source"],
            better=inner.better or about["better"],
            path=(field.name, *inner.path),
        )


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _arrow_type(hint: Any) -> pa.DataType:
    """int, float, str, bool, or a sequence of one of them; None besides is what every column may
    be."""
    if isinstance(hint, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    if typing.get_origin(hint) in (tuple, Sequence):
        return pa.list_(_arrow_type(typing.get_args(hint)[0]))
    return ARROW_TYPES[hint]


def flat(one: object) -> dict[str, Any]:
    """The columns of a row by name."""
    return {column.name: column.of(one) for column in columns(type(one))}


def nothing(kind: type[R]) -> R:
    """A row all of whose columns are None, for a group without any value."""
    return made(kind, lambda _: None)


def widened(kind: type[R], narrow: object, **more: object) -> R:
    """A row of `kind`, which has the fields of `narrow` and those in `more`."""
    fields: dict[str, Any] = {**vars(narrow), **more}
    return kind(**fields)


def reduced(
    kind: type[R], rows: Sequence[R], functions: Mapping[OverRuns, Callable[[list[Any]], Any]]
) -> R:
    """One row for several: of each column the known values, by the function that it names.

    A column without a known value, or that is no part of the comparison, is None.
    """

    def value(column: Column) -> Any:
        known = [found for one in rows if (found := column.of(one)) is not None]
        return functions[column.over_runs](known) if known and column.over_runs else None

    return made(kind, value)


def made(kind: type[R], value: Callable[[Column], Any]) -> R:
    """A row of `kind`, each column given by `value`."""
    (one,) = _assembled(kind, {column.path: [value(column)] for column in columns(kind)})
    return typing.cast(R, one)


def _assembled(
    kind: Any, values: Mapping[tuple[str, ...], Sequence[Any]], path: tuple[str, ...] = ()
) -> list[object]:
    """Rows of `kind` from the values of each column, all of one length: group by group, as tables
    have hundreds of thousands of rows."""
    hints, fields = _hints(kind), dataclasses.fields(kind)
    names = [field.name for field in fields]
    inner = [
        _assembled(hints[field.name], values, (*path, field.name))
        if "pattern" in field.metadata
        else values[(*path, field.name)]
        for field in fields
    ]
    return [kind(**dict(zip(names, one, strict=True))) for one in zip(*inner, strict=True)]


@dataclass(frozen=True)
class Table(Generic[R]):
    """A table: its name, and the type of its rows.

    only: which columns of the row type are columns of the table; the others are None in rows that
    are read. None: all.
    """

    name: str
    kind: type[R]
    only: Callable[[Column], object] | None = None

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table, in order."""
        return tuple(one for one in columns(self.kind) if self.only is None or self.only(one))

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the table's name and the schema's version in its metadata."""
        about = {"table": self.name, "schema_version": str(SCHEMA_VERSION)}
        return pa.schema([column.field for column in self.columns], metadata=about)

    def make(self, rows: Iterable[R]) -> pa.Table:
        """Rows as an Arrow table."""
        kept = list(rows)
        arrays = [
            pa.array([column.of(one) for one in kept], type=column.type) for column in self.columns
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def rows(self, table: pa.Table) -> list[R]:
        """The rows of an Arrow table; columns that this table does not have are left out.

        One that may be None and is not there, as in a result from before it was added, is None.
        Raises KeyError with the name of another one that is not there.
        """
        unknown: Sequence[None] = [None] * table.num_rows
        values: dict[tuple[str, ...], Sequence[Any]] = {
            column.path: unknown for column in columns(self.kind)
        }
        there = set(table.column_names)
        for one in self.columns:
            if one.name in there or not one.optional:
                values[one.path] = _values(table.column(one.name))
        return typing.cast(list[R], _assembled(self.kind, values))

    def data(self, rows: Iterable[R]) -> list[dict[str, object]]:
        """Rows as plain data for `json.dumps`: the columns of the table by name."""
        return [{column.name: column.of(one) for column in self.columns} for one in rows]


def _values(found: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = found.to_pylist()
    if not pa.types.is_list(found.type):
        return values
    return [None if value is None else tuple(value) for value in values]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items that agree in `key` together, in the order of the first of each."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
