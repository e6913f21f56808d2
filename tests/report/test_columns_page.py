"""docs/columns.md: every column of every table, as it is declared."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pyarrow as pa
import pytest
from columns_page import PAGE, SECTIONS, Section, page, unit_of

import orchestrator.analysis
import orchestrator.node
import orchestrator.store
from orchestrator.store.schema import CELL_KEYS, RUN_KEYS, START_KEYS
from workers.rows import Table, column, columns, row

WINGS = (orchestrator.analysis, orchestrator.node, orchestrator.store)
KEYS = {table.name for table in (CELL_KEYS, START_KEYS, RUN_KEYS)}


def tables() -> Iterator[Table[object]]:
    """Every table that the packages declare, those of keys left out."""
    names = [
        f"{wing.__name__}.{found.name}"
        for wing in WINGS
        for found in pkgutil.iter_modules(wing.__path__)
    ]
    for name in (*names, "workers.records"):
        declared = vars(importlib.import_module(name)).values()
        yield from (one for one in declared if isinstance(one, Table) and one.name not in KEYS)


def is_number(of: pa.DataType) -> bool:
    each = of.value_type if pa.types.is_list(of) else of
    return pa.types.is_integer(each) or pa.types.is_floating(each)


def test_the_page_is_what_the_row_types_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python scripts/columns_page.py`"


def test_every_table_has_a_section_and_every_column_of_it_is_on_the_page() -> None:
    text = page()
    assert {one.name for one in tables()} <= {section.name for section in SECTIONS}
    for table in tables():
        assert f"## {table.name}\n" in text
        for one in table.columns:
            assert f"| `{one.name}` |" in text, (table.name, one.name)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_column_has_a_meaning_and_every_number_a_unit(section: Section) -> None:
    for one in columns(section.kind):
        assert one.meaning, one.name
        assert "{" not in one.meaning, one.name
        assert one.unit or not is_number(one.type), one.name
        assert unit_of(one), one.name


def test_what_is_on_the_page_can_be_read_as_a_table() -> None:
    for line in page().splitlines():
        assert not line.startswith("|") or line.endswith(" |")
    blocks = [block.splitlines() for block in page().split("\n\n") if block.startswith("|")]
    for head, *lines in blocks:
        assert {line.count("|") for line in lines} == {head.count("|")}, head


def test_a_column_of_a_list_or_of_texts_says_so() -> None:
    @row
    class Odd:
        """A row."""

        sizes: tuple[int, ...] = column("sizes", "B")
        names: tuple[str, ...] = column("names")
        seen: bool = column("whether")

    assert [unit_of(one) for one in columns(Odd)] == ["list: B", "list: text", "true or false"]
