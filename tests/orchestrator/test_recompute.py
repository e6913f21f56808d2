"""What was kept of observed runs, worked out again from all their spans."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner, Result
from spans import placed, span
from summaries import write_run

from orchestrator import cli
from orchestrator.analysis.load import tables
from orchestrator.analysis.observed.accounting import account
from orchestrator.analysis.recompute import DIFFERENT, EQUAL, EXCERPT, of_folder
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.export import pack
from orchestrator.store.folders import manifest_text
from orchestrator.store.store import Store
from workers.records import COMPUTE, DRAIN, SPANS, SpanRow


def cell(layout: str) -> Cell:
    return Cell(Deployment("tiny", layout, "torch", "bfloat16"), Scenario("short", 256, 128), 8)


def tp2() -> Iterable[SpanRow]:
    for rank, busy in ((0, 5.1), (1, 8.3)):
        for number in range(8):
            begin = 10.0 * number
            yield span(rank, number, COMPUTE, begin, begin + busy)
            yield span(rank, number, "all_reduce", begin + busy, begin + 10, "tp", 100)


def pp2() -> Iterable[SpanRow]:
    """A prefill step and decode steps; stage 0 gets the tokens of each in the next but one."""
    for number in range(10):
        begin, phase = 6.3 * number, "decode" if number else "prefill"
        if number >= 2:
            came = (begin - 4.5, begin - 0.5)
            yield span(0, number, "broadcast", *came, "pp", 8, phase, carried=number - 2)
        yield span(0, number, COMPUTE, begin - 0.5, begin + 1.5, phase=phase)
        yield span(0, number, "send", begin + 1.5, begin + 6, "pp", 50, phase)
        yield span(1, number, "recv", begin + 5.5, begin + 6, "pp", 50, phase)
        yield span(1, number, COMPUTE, begin + 6, begin + 11, phase=phase)
        yield span(1, number, "broadcast", begin + 11, begin + 11.5, "pp", 8, phase)
    for number in (8, 9):
        yield span(0, 10, "broadcast", 60, 70, "pp", 8, DRAIN, carried=number)


RUNS = {"tp2": list(tp2()), "pp2": list(pp2())}


def observed(layout: str, whole: bool = True) -> dict[str, pa.Table]:
    return account(SPANS.make(RUNS[layout]), placed(layout), whole=whole)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "tiny-0123456789")
    store.create()
    store.update_manifest(meshes={"tp2": [["tp", 2]], "pp2": [["pp", 2]]})
    return store


def invoke(store: Store, *options: str) -> Result:
    return CliRunner().invoke(cli.main, ["recompute", str(store.folder), *options])


def without(table: pa.Table, column: str, value: float) -> pa.Table:
    """`table` with `value` in the first row of a column."""
    old = table.column(column).to_pylist()
    place = table.schema.get_field_index(column)
    changed = pa.array([value, *old[1:]], type=table.schema.field(column).type)
    return table.set_column(place, table.schema.field(column), changed)


@pytest.mark.parametrize("packed", [False, True])
def test_parts_and_timed_calls_of_tp_and_pp_are_equal_again(store: Store, packed: bool) -> None:
    for layout in RUNS:
        write_run(store, Run(cell(layout), 0, 0))
        store.write_observed(cell(layout), 0, observed(layout))
    if packed:
        target = store.folder.parent / "packed"
        pack(tables(store.folder), manifest_text(store.folder), target)
        store = Store(target)
    assert {(one.cell.strategy, one.status) for one in of_folder(store.folder)} == {
        ("tp2", EQUAL),
        ("pp2", EQUAL),
    }
    done = invoke(store)
    assert done.exit_code == 0, done.output
    assert "2 of 2 equal what is kept" in done.output


def test_a_layout_without_its_collectives_is_told_from_the_whole_one(store: Store) -> None:
    whole = cell("tp2")
    ablated = replace(whole, deployment=replace(whole.deployment, ablation="comm"))
    for one in (whole, ablated):
        write_run(store, Run(one, 0, 0))
        store.write_observed(one, 0, observed("tp2"))
    assert "tp2 without comm" in invoke(store).output


def test_what_was_kept_wrongly_is_found_with_its_column_and_fails(store: Store) -> None:
    wrong = observed("tp2")
    wrong["parts"] = without(wrong["parts"], "exposed_wait_ms", 3.5)
    store.write_observed(cell("tp2"), 0, wrong)
    store.write_observed(cell("pp2"), 0, observed("pp2"))
    done = invoke(store, "--json")
    assert done.exit_code == 1
    found = {one["strategy"]: one for one in json.loads(done.output)}
    assert found["pp2"]["status"] == EQUAL
    assert found["tp2"]["status"] == DIFFERENT
    assert found["tp2"]["where"] == "exposed_wait_ms in parts of rank 0 decode"
    assert found["tp2"]["difference"] == pytest.approx(0.3)


def test_the_largest_difference_is_told(store: Store) -> None:
    wrong = observed("tp2")
    for column, value in (("compute_ms", 5.2), ("bubble_ms", 7.0), ("launch_gap_ms", 0.1)):
        wrong["parts"] = without(wrong["parts"], column, value)
    store.write_observed(cell("tp2"), 0, wrong)
    (found,) = of_folder(store.folder)
    assert (found.difference, found.where) == (7.0, "bubble_ms in parts of rank 0 decode")


def test_a_row_that_was_kept_and_is_not_there_again_is_a_difference(store: Store) -> None:
    lost = observed("tp2")
    keeps = pc.not_equal(lost["spans"].column("kind"), "all_reduce")
    lost["spans"] = lost["spans"].filter(keeps)
    store.write_observed(cell("tp2"), 0, lost)
    (found,) = of_folder(store.folder)
    assert (found.status, found.difference) == (DIFFERENT, None)
    assert invoke(store).exit_code == 1


def test_what_the_probe_costs_cannot_be_known_from_spans_and_is_not_compared(store: Store) -> None:
    kept = observed("tp2")
    kept["parts"] = without(kept["parts"], "timed_step_ms", 9.9)
    store.write_observed(cell("tp2"), 0, kept)
    (found,) = of_folder(store.folder)
    assert found.status == EQUAL


def test_a_cell_of_which_an_excerpt_was_kept_is_listed_as_such(store: Store) -> None:
    store.write_observed(cell("tp2"), 0, observed("tp2"))
    store.write_observed(cell("pp2"), 0, observed("pp2", whole=False))
    found = {one.cell.strategy: one.status for one in of_folder(store.folder)}
    assert found == {"tp2": EQUAL, "pp2": EXCERPT}
    assert invoke(store).exit_code == 0


def test_a_rank_that_was_not_observed_is_the_same_again(store: Store) -> None:
    seen = SPANS.make([one for one in RUNS["tp2"] if one.rank == 0])
    kept = account(seen, placed("tp2"), whole=True, unseen={1: "no trace"})
    store.write_observed(cell("tp2"), 0, kept)
    assert [one.status for one in of_folder(store.folder)] == [EQUAL]


def test_where_nothing_can_be_recomputed_the_error_says_why(store: Store) -> None:
    with pytest.raises(UserError, match="none of its cells was observed, or it trained"):
        of_folder(store.folder)
    store.write_observed(cell("tp2"), 0, observed("tp2", whole=False))
    done = invoke(store)
    assert done.exit_code != 0
    assert "an excerpt of its spans was kept" in done.output
    assert "--save-spans" in done.output


def test_a_mesh_or_spans_that_are_not_there_are_named(store: Store) -> None:
    store.update_manifest(meshes={"tp2": [["tp", 2]]})
    store.write_observed(cell("pp2"), 0, observed("pp2"))
    with pytest.raises(UserError, match=r"its mesh is not in manifest\.json"):
        of_folder(store.folder)
    kept = observed("tp2")
    store.write_observed(cell("tp2"), 0, {**kept, "spans": kept["spans"].slice(0, 0)})
    with pytest.raises(UserError, match="its spans are not there"):
        of_folder(store.folder)
