"""The store of runs: whole parts or none, what names them, other schema versions, folders."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from stores import CELL, RUN, observed_tables, requests_table, run_tables
from summaries import measured, write_run

from orchestrator.analysis.summary import MEASURED
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Experiment, Run
from orchestrator.store.arrow_files import read_part, write_arrow
from orchestrator.store.catalog import list_runs
from orchestrator.store.folders import check_version, find, folder_of
from orchestrator.store.journal import Journal
from orchestrator.store.schema import RUN_KEYS, START_KEYS
from orchestrator.store.store import RUN_TABLES, TABLES, Store
from workers.rows import SCHEMA_VERSION, flat


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "tiny-0123456789")
    store.create()
    return store


def parts(store: Store, table: str = "summary") -> list[str]:
    return sorted(path.name for path in (store.folder / table).iterdir())


def summary_part(store: Store) -> Path:
    return store.folder / "summary" / f"{RUN.name}.arrow"


# -- one run


def test_a_run_is_done_once_its_summary_says_completed(store: Store) -> None:
    assert not store.is_completed(RUN)
    assert store.outcome_of(RUN) is None
    write_run(store, RUN, status="failed", reason="timeout")
    assert not store.is_completed(RUN)
    outcome = store.outcome_of(RUN)
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("failed", "timeout")
    write_run(store, RUN, {"requests": requests_table()}, output_throughput=5.0)
    assert store.is_completed(RUN)
    assert parts(store) == parts(store, "requests") == [f"{RUN.name}.arrow"]


def test_a_run_is_read_as_it_was_written(store: Store) -> None:
    row = write_run(store, RUN, output_throughput=5.0, peak_memory_bytes_per_rank=(1, 2))
    table = store.summary_of(RUN)
    assert table is not None
    assert MEASURED.rows(table) == [row]


def test_the_story_of_a_failure_is_kept_until_the_run_is_completed(store: Store) -> None:
    store.write_failure(RUN.name, "a traceback")
    write_run(store, RUN, status="failed")
    (story,) = (store.folder / "failures").iterdir()
    assert story.read_text() == "a traceback\n"
    write_run(store, RUN)
    assert not story.exists()


def test_every_part_names_its_run(store: Store) -> None:
    write_run(store, RUN, run_tables())
    for table in ("requests", "collectives"):
        kept = store.read(table)
        assert kept is not None
        assert RUN_KEYS.rows(kept) == [store.run_key(RUN)]
    key = flat(store.run_key(RUN))
    assert (key["strategy"], key["max_concurrency"], key["start"], key["run"]) == ("tp4", 8, 0, 0)
    assert key["experiment"] == store.folder.name
    requests = store.read("requests")
    assert requests is not None
    assert requests.column("token_times_s").to_pylist() == [[0.1, 0.2]]


def test_what_was_observed_of_a_cell_names_its_start_and_no_run(store: Store) -> None:
    assert store.observed(CELL, 0) is None
    store.write_observed(CELL, 0, observed_tables())
    for table in observed_tables():
        kept = store.read(table)
        assert kept is not None
        assert START_KEYS.rows(kept) == [store.start_key(CELL, 0)]
        assert "run" not in kept.column_names
    assert store.observed(CELL, 0) is not None


def test_a_crash_while_observed_tables_are_written_leaves_the_cell_unobserved(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table `parts` marks a cell as observed, so it has to come last."""
    written: list[str] = []

    def write(path: Path, table: pa.Table) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.parent.name)
        write_arrow(path, table)

    monkeypatch.setattr("orchestrator.store.store.write_arrow", write)
    tables = observed_tables()
    with pytest.raises(KeyboardInterrupt):
        store.write_observed(CELL, 0, {name: tables[name] for name in reversed(tables)})
    assert written == ["spans"]
    assert store.observed(CELL, 0) is None


def test_observing_a_cell_leaves_the_parts_of_its_runs_as_they_are(store: Store) -> None:
    write_run(store, RUN, run_tables())
    files = [path for table in RUN_TABLES for path in (store.folder / table).iterdir()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert len(before) == 3
    store.write_observed(CELL, 0, observed_tables())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


def test_units_and_schema_version_are_in_the_file(store: Store) -> None:
    write_run(store, RUN)
    part = read_part(summary_part(store))
    assert part is not None
    assert part.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert part.schema.field("mean_ttft_ms").metadata == {b"unit": b"ms"}


# -- parts that are not whole


@pytest.mark.parametrize("keep", [0, 7, 200, -10])
def test_a_part_cut_short_is_a_run_not_done(store: Store, keep: int) -> None:
    write_run(store, RUN)
    path = summary_part(store)
    path.write_bytes(path.read_bytes()[:keep])
    assert not store.is_completed(RUN)
    assert store.outcome_of(RUN) is None
    assert store.read("summary") is None
    assert store.experiments_in("summary") == set()


def test_a_part_that_is_missing_is_a_run_not_done(store: Store) -> None:
    write_run(store, RUN)
    write_run(store, Run(CELL, 0, 1))
    summary_part(store).unlink()
    assert not store.is_completed(RUN)
    kept = store.read("summary")
    assert kept is not None
    assert kept.column("run").to_pylist() == [1]


def test_a_cell_whose_observed_part_is_cut_short_is_not_observed(store: Store) -> None:
    store.write_observed(CELL, 0, observed_tables())
    (path,) = (store.folder / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert store.observed(CELL, 0) is None


def test_a_temporary_file_of_a_dead_process_is_cleared(store: Store) -> None:
    (store.folder / "summary" / ".x.arrow.123.tmp").write_bytes(b"half")
    store.create()
    assert parts(store) == []


def test_a_write_that_fails_leaves_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(store, RUN)

    def full(self: object, table: pa.Table) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_table", full)
    with pytest.raises(UserError, match=r"cannot be written to .*: No space left on device"):
        write_run(store, RUN, status="failed")
    assert store.is_completed(RUN)
    assert parts(store) == [f"{RUN.name}.arrow"]


# -- other schema versions


def set_version(store: Store, version: int) -> None:
    store.update_manifest(schema_version=version)


@pytest.mark.parametrize("version", [1, 99])
def test_another_schema_version_is_refused_by_name(store: Store, version: int) -> None:
    assert version != SCHEMA_VERSION
    set_version(store, version)
    words = f"{store.folder} holds results of schema version {version}.*version {SCHEMA_VERSION}"
    for check in (store.create, lambda: check_version(store.folder)):
        with pytest.raises(UserError, match=f"{words}; give another --result-dir, or read it with"):
            check()


@pytest.mark.parametrize("version", [1, 99])
def test_a_part_of_another_schema_version_is_refused(store: Store, version: int) -> None:
    other = pa.table({"status": ["completed"]})
    other = other.replace_schema_metadata({"schema_version": str(version)})
    Journal(store.folder).write(
        store.folder / "summary" / "x.arrow", lambda path: write_arrow(path, other)
    )
    with pytest.raises(UserError, match=f"x.arrow holds results of schema version {version}"):
        store.read("summary")


# -- folders and names


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "x").create()


def test_the_manifest_is_updated_in_place(store: Store) -> None:
    store.update_manifest(started_at="then")
    store.update_manifest(finished_at="now")
    expected = {"started_at": "then", "finished_at": "now", "schema_version": SCHEMA_VERSION}
    assert expected.items() <= store.manifest().items()


def test_a_folder_that_was_renamed_keeps_the_name_of_its_experiment(store: Store) -> None:
    store.update_manifest()
    write_run(store, RUN)
    renamed = Store(store.folder.rename(store.folder.with_name("moved")))
    assert renamed.name == "tiny-0123456789"
    write_run(renamed, Run(CELL, 0, 1), {"requests": requests_table()})
    renamed.write_observed(CELL, 0, observed_tables())
    assert {name for table in TABLES for name in renamed.experiments_in(table)} == {renamed.name}
    renamed.update_manifest(finished_at="now")
    assert renamed.manifest()["name"] == renamed.name


def test_names_that_are_no_file_names_do_not_meet(store: Store) -> None:
    for model in ("a/b", "a_b", "a:b"):
        write_run(
            store, Run(Cell(Deployment(model, "tp1", "torch", "float32"), CELL.scenario, 1), 0, 0)
        )
    assert len(parts(store)) == 3


def test_the_same_request_has_the_same_folder_and_another_seed_another(tmp_path: Path) -> None:
    folder = folder_of(Experiment(result_dir=tmp_path, strategy=("tp4",)))
    assert folder == folder_of(Experiment(result_dir=tmp_path, strategy=("pp4",), num_runs=3))
    assert folder != folder_of(Experiment(result_dir=tmp_path, seed=1))
    assert folder.parent == tmp_path


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results"):
        find(tmp_path)


def test_the_experiments_of_a_table_are_known_without_reading_the_rest(store: Store) -> None:
    write_run(store, RUN, {"requests": requests_table()})
    Journal(store.folder).write(
        store.folder / "summary" / "other.arrow",
        lambda path: write_arrow(path, MEASURED.make([measured()])),
    )
    assert store.experiments_in("summary") == {store.name, "e"}
    assert store.experiments_in("requests") == {store.name}
    assert store.experiments_in("steps") == set()
    read = read_part(store.folder / "requests" / f"{RUN.name}.arrow", only="experiment")
    assert read is not None
    assert read.column_names == ["experiment"]


# -- what was run


def test_listing_what_was_run(store: Store) -> None:
    store.update_manifest(started_at="2030-01-01")
    for index, status in enumerate(("completed", "failed", "invalid")):
        write_run(store, Run(CELL, 0, index), status=status)
    (listed,) = list_runs([store.folder.parent])
    assert (listed.name, listed.model, listed.strategies) == (store.name, "tiny", ["tp4"])
    assert (listed.completed, listed.invalid, listed.failed) == (1, 1, 1)
    assert (listed.started_at, listed.schema_version) == ("2030-01-01", SCHEMA_VERSION)


def test_results_of_another_version_are_listed_with_that_version_alone(store: Store) -> None:
    write_run(store, RUN)
    set_version(store, 1)
    (listed,) = list_runs([store.folder.parent])
    assert (listed.name, listed.schema_version) == (store.name, 1)
    assert (listed.completed, listed.strategies) == (0, [])


def test_where_nothing_was_run_the_list_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert list_runs([Path("results")]) == []
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        list_runs([tmp_path / "nowhere"])
