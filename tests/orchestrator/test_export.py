"""Results as they leave the store: read back joined, exported, packed into one folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from stores import CELL, RUN, observed_tables, requests_table, run_tables
from summaries import write_run

from orchestrator.analysis.comparing import findings
from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.load import Results, load, parts, summaries, tables
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.experiment import Run
from orchestrator.store import export
from orchestrator.store.arrow_files import parsed, read_part, write_arrow
from orchestrator.store.folders import find
from orchestrator.store.journal import CHECKSUMS
from orchestrator.store.store import Store
from workers.rows import flat

LEVELS = {"ttft": 200.0}


def written(folder: Path) -> Store:
    """An experiment of one cell: two runs that are completed, one that failed, and what was
    observed."""
    store = Store(folder)
    store.create()
    store.update_manifest(experiment={"until_ci": 0.05})
    for index in range(2):
        rate, memory = 100.0 + index, (1, 2)
        row = {"output_throughput": rate, "peak_memory_bytes_per_rank": memory, "num_prompts": 1}
        write_run(store, Run(CELL, 0, index), run_tables(), **row)
    write_run(store, Run(CELL, 0, 2), status="failed", reason="timeout", output_throughput=None)
    store.write_observed(CELL, 0, observed_tables())
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return written(tmp_path / "tiny-1")


@pytest.fixture
def packed(store: Store, tmp_path: Path) -> Path:
    manifest = json.dumps(store.manifest())
    export.pack(tables(store.folder), manifest, tmp_path / "packed")
    return tmp_path / "packed"


def parts_of(folder: Path) -> dict[str, pa.Table]:
    found = {path: read_part(path) for path in folder.glob("*/*.arrow")}
    return {str(path.relative_to(folder)): table for path, table in found.items()}


def test_what_is_unpacked_is_part_for_part_what_was_packed(store: Store, packed: Path) -> None:
    done = CliRunner().invoke(
        main, ["unpack", str(packed), "--result-dir", str(store.folder.parent / "again")]
    )
    again = Store(store.folder.parent / "again" / store.folder.name)
    assert (done.exit_code, done.stdout) == (0, f"{again.folder}\n")
    before = {name: table for name, table in parts_of(store.folder).items() if table.num_rows}
    assert parts_of(again.folder) == before
    assert again.manifest() == store.manifest()
    assert again.is_completed(Run(CELL, 0, 1))
    assert again.observed(CELL, 0) is not None
    run = Run(CELL, 1, 0)
    with again.opened():
        write_run(again, run, run_tables())
    assert len(again.outcomes()) == len(store.outcomes()) + 1


def test_a_table_without_rows_is_there_when_it_is_packed_again(store: Store, packed: Path) -> None:
    whole = parts(packed)
    nothing = whole["collectives"].slice(0, 0)
    again = export.unpack({**whole, "collectives": nothing}, "{}", store.folder.parent / "again")
    found = Store(again).read("collectives")
    assert found is not None
    assert found.num_rows == 0


def test_what_cannot_be_unpacked_is_refused(store: Store, packed: Path) -> None:
    with pytest.raises(UserError, match="holds no packed results"):
        parts(store.folder)
    with pytest.raises(UserError, match="is not empty; give another --result-dir"):
        export.unpack(parts(packed), "{}", store.folder)
    (packed / "steps.arrow").write_bytes(b"")
    with pytest.raises(UserError, match=r"steps\.arrow is damaged"):
        parts(packed)


def only(results: list[Results]) -> Results:
    (one,) = results
    return one


# -- joined


def test_what_was_observed_of_a_cell_stands_beside_each_of_its_completed_runs(store: Store) -> None:
    runs = summaries(store)
    exposed = [run.step.decode.comm_exposed.pct for run in runs]
    assert exposed == [pytest.approx(30.0), pytest.approx(30.0), None]
    reduced = [run.operations.decode.tp_all_reduce for run in runs]
    assert [(one.calls, one.bytes, one.busbw) for one in reduced] == [
        (3, 96, 30.0),
        (3, 96, 30.0),
        (None, None, None),
    ]


def test_what_was_observed_of_one_cell_is_not_put_beside_another(tmp_path: Path) -> None:
    store = written(tmp_path / "tiny-1")
    other = Run(type(CELL)(CELL.deployment, CELL.scenario, 9), 0, 0)
    write_run(store, other, run_tables())
    (run,) = [run for run in summaries(store) if run.cell.max_concurrency == 9]
    assert run.step.decode.comm_exposed.pct is None
    assert run.operations.decode.tp_all_reduce.calls == 3
    assert run.operations.decode.tp_all_reduce.busbw is None


def test_tables_for_others_have_the_joined_columns(store: Store) -> None:
    found = tables(store.folder)
    assert found["summary"].column("comm_exposed_pct").to_pylist()[:2] == [pytest.approx(30.0)] * 2
    assert found["summary"].column("tp_all_reduce_busbw").to_pylist() == [30.0, 30.0, None]
    assert found["collectives"].column("calls").to_pylist() == [3, 3]
    assert found["collectives"].column("busbw").to_pylist() == [30.0, 30.0]
    assert {"spans", "timed_collectives", "parts", "requests"} <= found.keys()


def test_the_part_of_a_run_has_no_observed_column(store: Store) -> None:
    kept = store.summary_of(RUN)
    assert kept is not None
    assert not {"comm_exposed_pct", "tp_all_reduce_busbw"} & set(kept.column_names)


def test_kept_requests_tell_the_goodput_under_other_levels(store: Store) -> None:
    """One request with tokens at 0.1 and 0.2 s; the third run has kept no requests."""
    goodputs = [run.goodput for run in summaries(store, LEVELS)]
    assert [one.goodput for one in goodputs] == ["ttft:200", "ttft:200", None]
    assert [one.request_goodput for one in goodputs] == [pytest.approx(5.0)] * 2 + [None]
    assert [run.goodput.goodput for run in summaries(store)] == [None] * 3


def test_an_slo_is_worked_out_again_from_the_kept_requests_and_leaves_goodput_as_it_is(
    store: Store,
) -> None:
    runs = summaries(store, {"ttft:p99": 50.0})
    assert [run.slo.slo_met for run in runs] == [False, False, None]
    assert [run.slo.slo_ratio for run in runs] == [pytest.approx(2.0)] * 2 + [None]
    assert [run.goodput for run in runs] == [run.goodput for run in summaries(store)]


def test_compare_says_below_the_table_which_layouts_meet_an_slo(store: Store) -> None:
    asked = ["compare", str(store.folder), "--slo", "ttft:p99:50", "e2el:p50:500"]
    done = CliRunner().invoke(main, asked)
    assert "SLO ttft:p99:50 e2el:p50:500: missed by tp4 (2.00x the limit of ttft:p99:50)." in (
        " ".join(done.stdout.split())
    )


def test_requests_are_read_only_to_hold_them_against_other_levels(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: set[str] = set()

    def read(content: bytes, path: Path, only: str | None = None) -> pa.Table:
        if only is None:
            whole.add(path.parent.name)
        return parsed(content, path, only)

    monkeypatch.setattr("orchestrator.store.store.parsed", read)
    findings.of_folders([store.folder])
    assert whole == {"summary", "parts", "timed_collectives", "collectives"}
    findings.of_folders([store.folder], LEVELS)
    assert whole == {"summary", "parts", "timed_collectives", "collectives", "requests"}


def test_tables_of_two_experiments_are_refused_with_both_names(tmp_path: Path) -> None:
    """Somebody has copied the requests of one result into the folder of another, which are from
    before there were checksums."""
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    for store in (one, other):
        (store.folder / CHECKSUMS).unlink()
    for path in (one.folder / "requests").iterdir():
        path.unlink()
    for path in (other.folder / "requests").iterdir():
        path.rename(one.folder / "requests" / path.name)
    with pytest.raises(
        UserError, match="the table requests is of the experiment other, the summary of one"
    ):
        load([one.folder])
    load([other.folder])


def test_results_of_schema_version_1_are_refused_with_what_to_do(store: Store) -> None:
    store.update_manifest(schema_version=1)
    readers: tuple[Callable[[], object], ...] = (
        lambda: load([store.folder]),
        lambda: tables(store.folder),
    )
    for read in readers:
        with pytest.raises(UserError, match=r"schema version 1, .* read it with the release that"):
            read()


# -- exported


@pytest.mark.parametrize("format", export.FORMATS)
def test_exports_merge_the_parts(store: Store, tmp_path: Path, format: str) -> None:
    files = export.write_tables(tables(store.folder), format, tmp_path / "out")
    names = {path.name for path in files}
    assert names >= {f"summary.{format}", f"requests.{format}", f"parts.{format}"}
    summary = tmp_path / "out" / f"summary.{format}"
    if format == "csv":
        assert summary.read_text().count("\n") == 4
        assert '"[1, 2]"' in summary.read_text()
    else:
        read = pa.parquet.read_table if format == "parquet" else pa.feather.read_table
        assert read(summary).num_rows == 3


def test_experiments_of_one_folder_are_exported_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / name)
    found = tables(tmp_path)
    experiments = found["summary"].column("experiment").to_pylist()
    assert experiments == ["one"] * 3 + ["two"] * 3
    assert set(found["requests"].column("experiment").to_pylist()) == {"one", "two"}


def test_the_comparison_is_exported_and_packed_too(store: Store, tmp_path: Path) -> None:
    kept = COMPARED.make(compare(summaries(store)))
    store.write_comparison(kept)
    assert tables(store.folder)["comparison"] == kept
    export.pack(tables(store.folder), "{}", tmp_path / "packed")
    assert read_part(tmp_path / "packed" / "comparison.arrow") == kept


def test_an_unknown_format_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'xls'.*parquet"):
        export.write_tables(tables(store.folder), "xls", tmp_path)


def test_a_folder_that_tables_cannot_be_written_to_is_said(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*; give another --out"):
        export.write_tables(tables(store.folder), "csv", tmp_path / "file" / "x")


# -- packed


def test_a_packed_folder_is_read_like_the_one_it_was_made_of(store: Store, packed: Path) -> None:
    loose, tight = only(load([store.folder])), only(load([packed]))
    assert list(map(flat, tight.runs)) == list(map(flat, loose.runs))
    assert tight.runs == loose.runs
    assert compare(tight.runs) == compare(loose.runs)
    assert tight.asked == loose.asked
    assert only(load([packed], LEVELS)).runs == only(load([store.folder], LEVELS)).runs
    of_packed, of_store = tables(packed), tables(store.folder)
    assert of_packed.keys() == of_store.keys()
    for name, table in of_store.items():
        assert of_packed[name].equals(table, check_metadata=True), name


def test_a_packed_folder_is_a_file_a_table_and_its_manifest(store: Store, packed: Path) -> None:
    assert {path.name for path in packed.iterdir()} == {
        "manifest.json",
        CHECKSUMS,
        *(f"{name}.arrow" for name in tables(store.folder)),
    }
    assert Store(packed).name == store.name


def test_packing_that_stops_in_the_middle_leaves_no_results(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, table: pa.Table) -> None:
        if "parts.arrow" in path.name:
            raise OSError(28, "No space left on device")
        write_arrow(path, table)

    monkeypatch.setattr("orchestrator.store.export.write_arrow", full)
    with pytest.raises(UserError, match=r"cannot be written to .*: No space left on device"):
        export.pack(tables(store.folder), "{}", tmp_path / "packed")
    with pytest.raises(UserError, match="no results"):
        load([tmp_path / "packed"])


def test_packing_a_packed_folder_changes_nothing(packed: Path, tmp_path: Path) -> None:
    manifest = (packed / "manifest.json").read_text()
    export.pack(tables(packed), manifest, tmp_path / "again")
    assert tables(tmp_path / "again") == tables(packed)


def test_no_run_can_be_added_to_a_packed_folder(packed: Path) -> None:
    with pytest.raises(
        UserError, match="no run can be added; `orchestrator unpack` makes a folder"
    ):
        Store(packed).create()
    assert not (packed / "summary").exists()


def test_results_are_packed_into_an_empty_folder_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export.pack({}, "{}", tmp_path / "out")
    with pytest.raises(UserError, match="is not empty; give another --out"):
        export.pack(tables(store.folder), "{}", tmp_path / "out")


def test_a_detailed_run_keeps_its_tokens_where_others_do_not(tmp_path: Path) -> None:
    """Parts with different columns become one table."""
    store = Store(tmp_path / "tiny-1")
    store.create()
    for index, detailed in enumerate((True, False)):
        kept = requests_table()
        kept = kept if detailed else kept.drop_columns(["output_token_ids"])
        write_run(store, Run(CELL, 0, index), {"requests": kept})
    tokens = tables(store.folder)["requests"].column("output_token_ids").to_pylist()
    assert tokens == [[5, 6], None]


# -- folders that look like results


def test_what_export_wrote_is_not_taken_for_results(store: Store) -> None:
    export.write_tables(tables(store.folder), "arrow", store.folder.parent / "export")
    assert find(store.folder.parent) == [store.folder]
    before = only(load([store.folder])).runs
    export.write_tables(tables(store.folder), "arrow", store.folder)
    assert only(load([store.folder])).runs == before
    store.check_open()


def test_a_pack_lies_in_its_folder_and_counts_no_run_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = only(load([store.folder])).runs
    monkeypatch.chdir(store.folder)
    done = CliRunner().invoke(main, ["pack", "."])
    assert done.exit_code == 0, done.output
    assert only(load([store.folder.parent])).runs == before
    assert only(load([store.folder / "packed"])).runs == before
