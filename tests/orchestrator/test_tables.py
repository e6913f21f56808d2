"""Every table of the project: names, meanings and units of its columns."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import workers
from workers.rows import SCHEMA_VERSION, Table

ROOT = Path(workers.__file__).parents[1]
DECLARATION = re.compile(r"^[A-Z_]+ = Table\(\"", re.MULTILINE)


def tables() -> Iterator[tuple[str, Table[Any]]]:
    """Every Table that a module declares, by module and name."""
    for package in ("workers", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if DECLARATION.search(path.read_text(encoding="utf-8")):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                declared = vars(importlib.import_module(module))
                yield from ((f"{module}.{n}", t) for n, t in declared.items() if _is_table(t))


def _is_table(value: object) -> bool:
    return isinstance(value, Table)


TABLES = dict(tables())


def test_the_tables_are_found() -> None:
    assert {table.name for table in TABLES.values()} >= {
        "summary",
        "requests",
        "steps",
        "collectives",
        "telemetry",
        "spans",
        "timed_collectives",
        "parts",
        "fabric",
        "fits",
        "comparison",
        "verdicts",
        "curves",
        "statistics",
        "unsettled",
        "ablations",
        "changes",
        "gate",
    }


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_column_has_a_meaning_and_every_number_a_unit(table: Table[Any]) -> None:
    for one in table.columns:
        kind = one.type.value_type if pa.types.is_list(one.type) else one.type
        is_number = kind in (pa.int64(), pa.float64())
        assert one.meaning, one.name
        assert "{" not in one.meaning, one.name
        assert bool(one.unit) == is_number, one.name
        assert one.field.metadata == ({b"unit": one.unit.encode()} if is_number else None)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_no_two_columns_of_a_table_have_one_name(table: Table[Any]) -> None:
    names = table.schema.names
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_file_says_of_which_table_and_schema_version_it_is(table: Table[Any]) -> None:
    assert table.schema.metadata == {
        b"table": table.name.encode(),
        b"schema_version": str(SCHEMA_VERSION).encode(),
    }


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_table_can_be_empty(table: Table[Any]) -> None:
    assert table.rows(table.make([])) == []
