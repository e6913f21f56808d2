"""Columns are declared once, and no row can be made without one of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import pyarrow as pa
import pytest
from tables import from_flat

from workers.rows import (
    SCHEMA_VERSION,
    Table,
    column,
    columns,
    flat,
    group,
    grouped,
    nothing,
    reduced,
    row,
    widened,
)


@row
class Key:
    name: str = column("what it is called")


@row
class Times:
    mean: float | None = column("{about}, mean", "ms", over_runs="mean")
    worst: float | None = column(
        "{about}, the longest", "ms", formula="max", source="own", over_runs="max", better="higher"
    )


@row
class Trial(Key):
    """A row with groups of columns."""

    count: int = column("how many", "1", over_runs="first")
    sizes: Sequence[int] | None = column("of each", "B")
    ttft: Times = group("{}_ttft_ms", "time to the first token", source="vLLM")
    tpot: Times = group("{}_tpot_ms", "time per token", better="lower")
    done: bool | None = column("whether it ended")


@row
class Nested:
    """A group within a group."""

    decode: Trial = group()
    prefill: Trial = group("prefill_{}")


TRIALS = Table("trials", Trial)
NAMES = [
    "name",
    "count",
    "sizes",
    "mean_ttft_ms",
    "worst_ttft_ms",
    "mean_tpot_ms",
    "worst_tpot_ms",
    "done",
]


def trial(**changes: Any) -> Trial:
    fields = {
        "name": "a",
        "count": 2,
        "sizes": (1, 2),
        "ttft": Times(mean=1.0, worst=2.0),
        "tpot": Times(mean=None, worst=4.0),
        "done": True,
    }
    return Trial(**{**fields, **changes})


def test_a_column_says_which_value_is_better_or_has_it_from_its_group_or_says_nothing() -> None:
    said = {one.name: one.better for one in columns(Trial)}
    assert (said["worst_ttft_ms"], said["worst_tpot_ms"]) == ("higher", "higher")
    assert (said["mean_ttft_ms"], said["mean_tpot_ms"]) == (None, "lower")
    assert said["count"] is None


# -- making a row


def test_a_forgotten_column_is_an_error_where_the_row_is_made() -> None:
    with pytest.raises(TypeError, match="worst"):
        Times(mean=1.0)  # type: ignore[call-arg]


def test_an_unknown_column_is_an_error_where_the_row_is_made() -> None:
    with pytest.raises(TypeError, match="median"):
        Times(mean=1.0, worst=1.0, median=1.0)  # type: ignore[call-arg]


def test_columns_are_given_by_name_alone_and_stay_as_they_are() -> None:
    with pytest.raises(TypeError):
        Times(1.0, 2.0)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        trial().count = 3  # type: ignore[misc]


def test_a_row_by_the_names_of_its_columns() -> None:
    values = flat(trial())
    assert list(values) == NAMES
    assert (values["mean_ttft_ms"], values["worst_tpot_ms"]) == (1.0, 4.0)
    assert from_flat(Trial, values) == trial()
    with pytest.raises(TypeError, match="Trial: no column median, done is not given"):
        from_flat(Trial, {**{name: None for name in NAMES if name != "done"}, "median": 1})


def test_nothing_is_known_of_a_row_that_is_none_throughout() -> None:
    empty = nothing(Trial)
    assert empty.ttft == Times(mean=None, worst=None)
    assert set(flat(empty).values()) == {None}


def test_a_row_is_widened_by_what_it_lacks() -> None:
    narrow = Key(name="a")
    rest = {name: value for name, value in vars(trial()).items() if name != "name"}
    assert widened(Trial, narrow, **rest) == trial()
    with pytest.raises(TypeError, match="done"):
        widened(Trial, narrow, **{name: rest[name] for name in rest if name != "done"})


# -- what is derived from the declarations


def test_columns_come_in_the_order_of_declaration_under_the_names_of_their_groups() -> None:
    assert [one.name for one in columns(Trial)] == NAMES
    prefill = [f"prefill_{name}" for name in NAMES]
    assert [one.name for one in columns(Nested)] == NAMES + prefill
    assert columns(Nested)[len(NAMES) + 3].path == ("prefill", "ttft", "mean")


def test_a_group_puts_its_words_into_the_meanings_and_its_source_where_there_is_none() -> None:
    found = {one.name: one for one in columns(Trial)}
    assert found["mean_ttft_ms"].meaning == "time to the first token, mean"
    assert found["worst_tpot_ms"].meaning == "time per token, the longest"
    sources = [found[f"{name}_ttft_ms"].source for name in ("mean", "worst")]
    assert sources == ["vLLM", "own"]
    assert found["worst_ttft_ms"].formula == "max"


def test_the_schema_has_types_units_and_its_version() -> None:
    assert TRIALS.schema.names == NAMES
    assert [str(field.type) for field in TRIALS.schema] == [
        "string",
        "int64",
        "list<item: int64>",
        *["double"] * 4,
        "bool",
    ]
    assert all(field.nullable for field in TRIALS.schema)
    assert TRIALS.schema.field("sizes").metadata == {b"unit": b"B"}
    assert TRIALS.schema.field("name").metadata is None
    assert TRIALS.schema.metadata == {
        b"table": b"trials",
        b"schema_version": str(SCHEMA_VERSION).encode(),
    }


# -- rows in tables


def test_rows_come_back_from_a_table_as_they_went_in() -> None:
    rows = [trial(), trial(name="b", sizes=None, done=None), nothing(Trial)]
    table = TRIALS.make(rows)
    assert table.schema.equals(TRIALS.schema, check_metadata=True)
    assert TRIALS.rows(table) == rows
    assert TRIALS.rows(TRIALS.make([])) == []


def test_a_list_comes_back_as_a_tuple_so_that_rows_stay_comparable() -> None:
    (read,) = TRIALS.rows(TRIALS.make([trial(sizes=[1, 2])]))
    assert read == trial(sizes=(1, 2))


def test_a_table_without_a_column_that_is_never_none_is_refused_by_its_name() -> None:
    table = TRIALS.make([trial()]).drop_columns(["count"])
    with pytest.raises(KeyError, match="count"):
        TRIALS.rows(table)


def test_a_column_that_may_be_none_may_be_missing() -> None:
    """As in a result from before it was added."""
    table = TRIALS.make([trial()]).drop_columns(["worst_tpot_ms", "sizes"])
    tpot = Times(mean=None, worst=None)
    assert TRIALS.rows(table) == [trial(sizes=None, tpot=tpot)]


def test_columns_that_the_table_does_not_have_are_left_out() -> None:
    more = TRIALS.make([trial()]).append_column("more", pa.array([1]))
    assert TRIALS.rows(more) == [trial()]
    keys = Table("keys", Key)
    assert keys.rows(more) == [Key(name="a")]


def test_a_table_of_some_columns_has_none_in_the_others() -> None:
    some = Table("some", Trial, lambda one: one.over_runs == "mean" or one.name == "name")
    assert some.schema.names == ["name", "mean_ttft_ms", "mean_tpot_ms"]
    (read,) = some.rows(some.make([trial()]))
    assert read == trial(
        count=None,
        sizes=None,
        ttft=Times(mean=1.0, worst=None),
        tpot=Times(mean=None, worst=None),
        done=None,
    )
    assert some.data([trial()]) == [{"name": "a", "mean_ttft_ms": 1.0, "mean_tpot_ms": None}]


def test_rows_as_plain_data_are_their_columns_by_name() -> None:
    assert TRIALS.data([trial()]) == [flat(trial())]


# -- several rows


def test_several_rows_become_one_each_column_by_its_own_function() -> None:
    functions: Any = {"mean": statistics.fmean, "max": max, "first": lambda known: known[0]}
    times = (Times(mean=1.0, worst=9.0), Times(mean=9.0, worst=2.0), Times(mean=2.0, worst=None))
    rows = [trial(count=index, ttft=one) for index, one in enumerate(times, start=5)]
    found = reduced(Trial, rows, functions)
    assert (found.ttft.mean, found.ttft.worst, found.count) == (4.0, 9.0, 5)
    assert found.tpot == Times(mean=None, worst=4.0)
    assert found.name is found.sizes is found.done is None  # no part of a comparison
    assert reduced(Trial, [], functions) == nothing(Trial)


def test_rows_are_grouped_in_the_order_of_the_first_of_each() -> None:
    rows = [trial(name=name, count=i) for i, name in enumerate("baba")]
    found = grouped(rows, lambda one: one.name)
    assert {name: [one.count for one in mine] for name, mine in found.items()} == {
        "b": [0, 2],
        "a": [1, 3],
    }
    assert list(found) == ["b", "a"]
