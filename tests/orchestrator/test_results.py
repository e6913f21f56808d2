"""The run store: whole parts or none, resume, other schema versions, exports."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Experiment, Run, Scenario
from orchestrator.report.runs import render
from orchestrator.store import results
from orchestrator.store.results import Store
from workers.records import REQUESTS, SCHEMA_VERSION, to_table

CELL = Cell(Deployment("tiny", "tp4", "torch", "float32"), Scenario("short", 256, 128), 8)
RUN = Run(CELL, 0)
TOKENS = to_table(
    [{"request_index": 0, "token_times_s": [0.1, 0.2], "output_token_ids": [5, 6]}], REQUESTS
)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "tiny-0123456789")
    store.create()
    return store


def parts(store, table="summary"):
    return sorted(path.name for path in (store.folder / table).iterdir())


def test_a_run_is_done_once_its_summary_says_completed(store):
    assert not store.is_completed(RUN)
    store.write_run(RUN, {"status": "failed", "reason": "timeout"}, {})
    assert not store.is_completed(RUN)
    store.write_run(RUN, {"status": "completed", "output_throughput": 5.0}, {"requests": TOKENS})
    assert store.is_completed(RUN)
    assert parts(store) == parts(store, "requests") == [f"{RUN.name}.arrow"]


def test_every_part_names_its_run(store):
    store.write_run(RUN, {"status": "completed"}, {"requests": TOKENS})
    row = store.read("requests").to_pylist()[0]
    assert (row["strategy"], row["max_concurrency"], row["run"], row["experiment"]) == (
        "tp4",
        8,
        0,
        store.name,
    )
    assert row["token_times_s"] == [0.1, 0.2]


def test_units_and_schema_version_are_in_the_file(store):
    store.write_run(RUN, {"status": "completed"}, {})
    schema = results.read_part(store.folder / "summary" / f"{RUN.name}.arrow").schema
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.field("mean_ttft_ms").metadata == {b"unit": b"ms"}


@pytest.mark.parametrize("keep", [0, 7, 200, -10])
def test_a_part_cut_short_is_a_run_not_done(store, keep):
    store.write_run(RUN, {"status": "completed"}, {})
    path = store.folder / "summary" / f"{RUN.name}.arrow"
    path.write_bytes(path.read_bytes()[:keep])
    assert not store.is_completed(RUN)
    assert store.read("summary") is None


def test_a_temporary_file_of_a_dead_process_is_cleared(store):
    (store.folder / "summary" / ".x.arrow.123.tmp").write_bytes(b"half")
    store.create()
    assert parts(store) == []


def test_a_write_that_fails_leaves_what_was_there(store, monkeypatch):
    store.write_run(RUN, {"status": "completed"}, {})

    def full(self, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_table", full)
    with pytest.raises(OSError, match="space"):
        store.write_run(RUN, {"status": "failed"}, {})
    assert store.is_completed(RUN)
    assert parts(store) == [f"{RUN.name}.arrow"]


def test_another_schema_version_is_refused_by_name(store):
    store.update_manifest()
    manifest = store.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    with pytest.raises(UserError, match=f"version 99.*version {SCHEMA_VERSION}"):
        store.create()


def test_a_part_of_another_schema_version_is_refused(store):
    other = pa.table({"status": ["completed"]}).replace_schema_metadata({"schema_version": "99"})
    results.write_part(store.folder / "summary" / "x.arrow", other)
    with pytest.raises(UserError, match="version 99"):
        store.read("summary")


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "x").create()


def test_the_manifest_is_updated_in_place(store):
    store.update_manifest(started_at="then")
    store.update_manifest(finished_at="now")
    assert {
        "started_at": "then",
        "finished_at": "now",
        "schema_version": SCHEMA_VERSION,
    }.items() <= store.manifest().items()


def test_names_that_are_no_file_names_do_not_meet(store):
    for model in ("a/b", "a_b", "a:b"):
        run = Run(Cell(Deployment(model, "tp1", "torch", "float32"), CELL.scenario, 1), 0)
        store.write_run(run, {"status": "completed"}, {})
    assert len(parts(store)) == 3


def test_the_same_request_has_the_same_folder_and_another_seed_another(tmp_path):
    folder = results.folder_of(Experiment(result_dir=tmp_path, strategy=("tp4",)))
    assert folder == results.folder_of(
        Experiment(result_dir=tmp_path, strategy=("pp4",), num_runs=3)
    )
    assert folder != results.folder_of(Experiment(result_dir=tmp_path, seed=1))
    assert folder.parent == tmp_path


def test_tokens_and_text_are_kept_only_when_asked_for():
    assert "output_token_ids" not in results.requests_part(TOKENS, False, None).column_names
    detailed = results.requests_part(TOKENS, True, lambda ids: f"<{sum(ids)}>").to_pylist()[0]
    assert (detailed["request_index"], detailed["output_token_ids"], detailed["output_text"]) == (
        0,
        [5, 6],
        "<11>",
    )


@pytest.mark.parametrize("format", results.FORMATS)
def test_exports_merge_the_parts(store, tmp_path, format):
    for index in range(2):
        store.write_run(
            Run(CELL, index),
            {"status": "completed", "peak_memory_bytes_per_rank": [1, 2]},
            {"requests": TOKENS},
        )
    written = results.export(store.folder, format, tmp_path / "out")
    assert [path.name for path in written] == [f"summary.{format}", f"requests.{format}"]
    if format == "csv":
        assert written[0].read_text().count("\n") == 3
        assert '"[1, 2]"' in written[0].read_text()
    else:
        read = pa.parquet.read_table if format == "parquet" else pa.feather.read_table
        assert read(written[0]).num_rows == 2


def test_an_unknown_format_is_refused(store, tmp_path):
    with pytest.raises(UserError, match=r"'xls'.*parquet"):
        results.export(store.folder, "xls", tmp_path)


def test_listing_what_was_run(store):
    store.update_manifest(started_at="2030-01-01")
    store.write_run(RUN, {"status": "completed"}, {})
    store.write_run(Run(CELL, 1), {"status": "failed"}, {})
    store.write_run(Run(CELL, 2), {"status": "invalid"}, {})
    row = results.list_runs(store.folder.parent)[0]
    assert (row["name"], row["strategies"]) == (store.name, ["tp4"])
    assert (row["completed"], row["invalid"], row["failed"]) == (1, 1, 1)


def test_the_list_is_cut_at_no_width_where_nobody_watches(store):
    store.write_run(RUN, {"status": "completed"}, {})
    row = results.list_runs(store.folder.parent)[0] | {"folder": "x/" * 200}
    console = Console(file=io.StringIO(), width=80)
    render([row], console)
    assert "x/" * 200 in console.file.getvalue()


def test_a_folder_without_results_is_said(tmp_path):
    with pytest.raises(UserError, match="no results"):
        results.find(tmp_path)


def test_turns_are_numbered_once_for_all_layouts(store):
    """Runs of one number were made side by side, so no command begins with a number that another
    has used."""
    assert store.next_turn() == 0
    other = Run(Cell(Deployment("tiny", "pp4", "torch", "float32"), CELL.scenario, 8), 3)
    store.write_run(
        RUN, {"status": "completed", "turn": None}, {}
    )  # as results have it that are older than turns
    assert store.next_turn() == 0
    for run, turn in ((RUN, 1), (other, 4)):
        store.write_run(run, {"status": "completed", "turn": turn}, {})
    assert store.next_turn() == 5
