"""What becomes of results whose files are damaged, cut, foreign or from before there were
checksums; and of places that cannot be written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from corruption import RESULTS, SILENT, in_process
from driver_inputs import deployment, run
from recorder import Recorder
from stores import CELL, RUN, observed_tables, run_tables
from summaries import write_run

from orchestrator.analysis.comparing import findings, gaps
from orchestrator.analysis.comparing.gaps import Missing
from orchestrator.analysis.load import load, tables
from orchestrator.analysis.training import comparison as training
from orchestrator.cli import main
from orchestrator.errors import Stop, UserError
from orchestrator.experiment import Cell, Deployment, Experiment, Run
from orchestrator.run import driver, limits, manifest, surroundings
from orchestrator.run.schedule import Schedule
from orchestrator.store import export, journal, lock
from orchestrator.store.folders import check_writable, manifest_text, read_manifest
from orchestrator.store.identity import identity_of
from orchestrator.store.journal import CHECKSUMS
from orchestrator.store.store import RUN_TABLES, Store
from workers.process import ProcessId

OTHER = Cell(Deployment("tiny", "pp4", "torch", "float32"), CELL.scenario, 8)
Monkey = pytest.MonkeyPatch
READERS = (["compare"], ["report"], ["export"], ["runs"], ["compare", "--json"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two cells, each with a run and what was observed."""
    store = Store(tmp_path / "tiny-1")
    store.create()
    store.update_manifest(cells=[CELL.name, OTHER.name])
    for cell in (CELL, OTHER):
        write_run(store, Run(cell, 0, 0), run_tables())
        store.write_observed(cell, 0, observed_tables())
    return store


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB: a part of the summary is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


# -- damage


@pytest.mark.parametrize("make_result", RESULTS)
def test_no_cut_no_flipped_bit_and_no_removal_changes_or_hides_anything_without_a_word(
    tmp_path: Path, make_result: Callable[[Path], list[str]]
) -> None:
    names = make_result(tmp_path / "r")
    found = in_process(tmp_path / "r", 1499, names)
    assert found.keys() == set(names)
    assert all(sum(kinds.values()) and SILENT not in kinds for kinds in found.values()), found


def test_results_of_which_the_summary_is_gone_are_listed_and_said(store: Store) -> None:
    shutil.rmtree(store.folder / "summary")
    done = call("runs", store.folder.parent, "--json")
    assert (done.exit_code, done.exception) == (0, None)
    assert [one["completed"] for one in json.loads(done.stdout)] == [0]
    assert f"{RUN.name}.arrow counts as missing: it is gone" in done.stderr
    assert "no run in" in call("compare", store.folder).stderr


@pytest.mark.parametrize(("name", "completed"), [("summary.arrow", 0), ("manifest.json", 2)])
def test_packed_results_of_which_a_file_is_gone_are_listed_and_said(
    store: Store, tmp_path: Path, name: str, completed: int
) -> None:
    packed = tmp_path / "root" / "packed"
    export.pack(tables(store.folder), manifest_text(store.folder), packed)
    (packed / name).unlink()
    done = call("runs", packed.parent, "--json")
    assert [one["completed"] for one in json.loads(done.stdout)] == [completed]
    assert f"{packed / name} counts as missing: it is gone" in done.stderr
    with pytest.raises(UserError, match="packed results"):
        Store(packed).check_open()


@pytest.mark.parametrize("table", RUN_TABLES[:2])
def test_a_folder_in_place_of_a_part_is_a_part_that_is_missing(store: Store, table: str) -> None:
    part = store.folder / table / f"{RUN.name}.arrow"
    part.unlink()
    part.mkdir()
    for reader in READERS:
        journal.told.cache_clear()
        done = call(*reader, store.folder)
        assert (done.exit_code, done.exception) == (0, None), (reader, done.output)
        assert f"{part} counts as missing: it cannot be read: Is a directory" in done.stderr
    assert not store.is_completed(RUN)


def test_a_folder_in_place_of_the_journal_is_said_and_nothing_is_believed(store: Store) -> None:
    (store.folder / CHECKSUMS).unlink()
    (store.folder / CHECKSUMS).mkdir()
    done = call("runs", store.folder, "--json")
    assert [one["completed"] for one in json.loads(done.stdout)] == [0]
    journal_is = f"{store.folder / CHECKSUMS} counts as missing: it cannot be read: Is a directory"
    assert journal_is in done.stderr
    with pytest.raises(UserError, match=r"cannot be written to .*: Is a directory"):
        write_run(store, RUN)


def test_a_cell_with_one_of_five_runs_left_is_said_in_the_table_the_page_and_json(
    store: Store,
) -> None:
    store.update_manifest(asked={CELL.name: [[5, 1], [3, 1]], OTHER.name: [[1, 1]]})
    for start in range(1, 5):
        write_run(store, Run(CELL, start, 0))
        cut(store.folder / "summary" / f"{Run(CELL, start, 0).name}.arrow")
    said = f"{CELL.name} has 1 of 5 runs that were asked for"
    done = call("compare", store.folder, "--json")
    row = {"experiment": store.name, "cell": CELL.name, "runs": 1, "asked": 5}
    assert json.loads(done.stdout)["missing"] == [row]
    assert said in call("compare", store.folder).stdout.replace("\n", " ")
    call("report", store.folder)
    assert said in (store.folder / "report.html").read_text()


def test_loads_of_a_layout_that_lack_as_much_share_a_line() -> None:
    names = ["m-2.5.tp2.torch.float32.short.c1", "m-2.5.tp2.torch.float32.short.c32"]
    lacking = [Missing(experiment="e", cell=name, runs=2, asked=6) for name in names]
    other = Missing(experiment="e", cell="m-2.5.pp2.torch.float32.short.c1", runs=0, asked=6)
    one, two = gaps.sentences([*lacking, other])
    assert one.startswith(f"{names[0]}, short.c32 has 2 of 6 runs each that were asked for")
    assert two.startswith(f"{other.cell} was asked for and has no run")


def test_readers_of_results_load_no_psutil() -> None:
    source = "import sys, orchestrator.store.store; sys.exit('psutil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_what_each_command_asked_for_of_a_cell_is_kept() -> None:
    (cell,) = deployment("tp1").cells
    one = manifest._asked_of([cell], Experiment(num_starts=5), {})
    again = manifest._asked_of([cell], Experiment(num_starts=5), {"asked": one})
    more = manifest._asked_of([cell], Experiment(num_runs=3), {"asked": {**again, "x": [[1, 1]]}})
    assert one == again == {cell.cell.name: [[5, 1]]}
    assert more == {cell.cell.name: [[5, 1], [1, 3]], "x": [[1, 1]]}


def test_a_damaged_table_of_a_pack_takes_nothing_from_its_summary(
    store: Store, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    export.pack(tables(store.folder), manifest_text(store.folder), packed)
    cut(packed / "requests.arrow")
    found = tables(packed)
    assert "requests" not in found
    assert found["summary"].num_rows == 2


def test_of_many_damaged_files_ten_are_named_and_the_others_summed_up(store: Store) -> None:
    for index in range(1, 20):
        write_run(store, Run(CELL, 0, index))
    (store.folder / CHECKSUMS).write_text("damaged")
    done = call("runs", store.folder)
    assert done.stderr.count("counts as missing") == journal.MOST_TOLD
    assert done.stderr.count(f"more files in {store.folder} count as missing") == 1
    assert done.stderr.count("\n") == journal.MOST_TOLD + 1


@pytest.mark.parametrize("table", ["summary", "requests", "collectives"])
def test_a_run_of_which_a_table_is_cut_by_one_byte_is_missing_and_said(
    store: Store, table: str
) -> None:
    part = store.folder / table / f"{RUN.name}.arrow"
    cut(part)
    for reader in READERS:
        journal.told.cache_clear()
        done = call(*reader, store.folder)
        assert (done.exit_code, done.exception) == (0, None), (reader, done.output)
        assert f"note: {part} counts as missing: its checksum is another one" in done.stderr
    assert f"{CELL.name} was asked for and has no run that can be read" in call(
        "compare", store.folder
    ).stdout.replace("\n", " ")
    assert f"{CELL.name} was asked for" in (store.folder / "report.html").read_text()
    assert not store.is_completed(RUN)
    assert store.is_completed(Run(OTHER, 0, 0))
    write_run(store, RUN, run_tables())
    assert store.is_completed(RUN)


def test_a_part_that_is_gone_is_said_and_its_run_is_made_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.folder / "requests" / f"{RUN.name}.arrow").unlink()
    assert not store.is_completed(RUN)
    assert f"it is gone, though {CHECKSUMS} names it" in capsys.readouterr().err


def test_a_part_that_nobody_wrote_here_is_missing(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = store.folder / "summary" / "foreign.arrow"
    foreign.write_bytes((store.folder / "summary" / f"{RUN.name}.arrow").read_bytes())
    kept = store.read("summary")
    assert kept is not None
    assert kept.num_rows == 2
    assert f"{foreign} counts as missing: {CHECKSUMS} does not name it" in capsys.readouterr().err


def test_results_of_which_no_run_can_be_read_are_an_error(store: Store) -> None:
    for part in (store.folder / "summary").iterdir():
        cut(part)
    done = call("compare", store.folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "error: no run in" in done.stderr


def test_a_crash_between_the_line_and_the_name_of_a_part_loses_nothing(store: Store) -> None:
    """Any line of a path may match: the part that was to be replaced is still there."""
    name = f"summary/{RUN.name}.arrow"
    with (store.folder / CHECKSUMS).open("a") as file:
        file.write(f"{'ab' * 32}  {name}\n")
    assert store.is_completed(RUN)


def test_a_line_that_a_crash_cut_costs_no_other_line(store: Store) -> None:
    with (store.folder / CHECKSUMS).open("a") as file:
        file.write("0123abc")
    write_run(store, Run(CELL, 0, 1))
    assert all(store.is_completed(Run(CELL, 0, index)) for index in (0, 1))


def test_tables_that_an_earlier_try_of_a_run_left_are_dropped(store: Store) -> None:
    write_run(store, RUN, status="failed", reason="timeout")
    assert not (store.folder / "requests" / f"{RUN.name}.arrow").exists()
    outcome = store.outcome_of(RUN)
    assert outcome is not None
    assert outcome.reason == "timeout"


# -- results from before there were checksums, and packed ones


def test_results_without_checksums_are_read_as_they_are_and_get_some_with_the_next_run(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.folder / CHECKSUMS).unlink()
    cut(store.folder / "parts" / f"{OTHER.name}.s0.arrow")
    old = Store(store.folder)
    assert old.is_completed(RUN)
    assert f"note: {store.folder} has no {CHECKSUMS}" in capsys.readouterr().err
    old.create()
    assert old.is_completed(RUN)
    assert old.manifest()["cells"]
    assert old.observed(CELL, 0) is not None
    assert old.observed(OTHER, 0) is None
    cut(store.folder / "summary" / f"{RUN.name}.arrow")
    assert not old.is_completed(RUN)


def test_a_packed_table_that_is_damaged_is_named_and_left_out(store: Store, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    export.pack(tables(store.folder), manifest_text(store.folder), packed)
    assert len((packed / CHECKSUMS).read_text().splitlines()) == len(list(packed.iterdir())) - 1
    cut(packed / "parts.arrow")
    done = call("compare", packed)
    assert done.exit_code == 0
    assert f"note: {packed / 'parts.arrow'} counts as missing" in done.stderr
    (packed / CHECKSUMS).unlink()
    assert f"note: {packed} has no {CHECKSUMS}" in call("compare", packed).stderr


# -- the manifest

WRONG = [
    "[]",
    "null",
    '"text"',
    "{",
    '{"schema_version": "3"}',
    '{"name": ["a"]}',
    '{"started_at": 5}',
    '{"experiment": []}',
    '{"experiment": {"strategy": "tp4"}}',
    '{"experiment": {"difference": "2%"}}',
    '{"cells": "all"}',
    '{"asked": {"cell": [5]}}',
    '{"meshes": {"tp4": 4}}',
    '{"num_prompts": []}',
    '{"blocks": {"0": {}}}',
    '{"blocks": [1]}',
    '{"blocks": [{"gpu_uuids": 7}]}',
    '{"gpus": ["H100"]}',
    '{"gpus": [{"memory_bytes": "80 GB"}]}',
    '{"host": "vm"}',
    '{"topology": [{}]}',
    '{"versions": ["2.11"]}',
    '{"environment": "NCCL_ALGO=Ring"}',
]


@pytest.mark.parametrize("text", WRONG)
def test_a_manifest_of_wrong_types_is_said_and_counts_as_missing(store: Store, text: str) -> None:
    path = store.folder / "manifest.json"
    journal.Journal(store.folder).write(path, lambda file: file.write_text(text))
    for reader in (["compare"], ["report"], ["runs"], ["pack"]):
        journal.told.cache_clear()
        done = call(*reader, store.folder)
        assert (done.exit_code, done.exception) == (0, None), (reader, done.output)
        assert f"note: {path} counts as missing: " in done.stderr
    assert (store.folder / "packed" / "manifest.json").read_text() == "{}\n"
    assert read_manifest(store.folder) == {}


# -- one driver at a time


def test_a_second_driver_is_told_who_writes_here(store: Store) -> None:
    me = ProcessId.here()
    with store.opened():
        with (
            pytest.raises(UserError, match=f"pid {me.pid} on {me.host} is writing here: "),
            Store(store.folder).opened(),
        ):
            pass
        assert json.loads((store.folder / lock.LOCK).read_text())["pid"] == me.pid
    with store.opened():
        pass


def test_a_driver_that_is_refused_writes_nothing(store: Store, monkeypatch: Monkey) -> None:
    monkeypatch.setattr(driver, "folder_of", lambda _: store.folder)
    monkeypatch.setattr(surroundings, "check_limits", lambda: None)
    monkeypatch.setattr(surroundings, "check_origin", lambda *_: None)
    with store.opened():
        before = contents(store.folder)
        with pytest.raises(UserError, match="is writing here"):
            run([deployment("tp1")], store.folder.parent)
        assert contents(store.folder) == before


@pytest.mark.parametrize("is_busy", [False, True])
def test_finished_results_are_compared_again_only_by_the_one_driver_in_them(
    store: Store, is_busy: bool
) -> None:
    seen = Recorder()
    with store.opened() if is_busy else contextlib.nullcontext():
        driver._compare_again(Store(store.folder), Experiment(), seen)
    assert (store.folder / "comparison.arrow").exists() is not is_busy
    assert (seen.notes != []) is is_busy


def test_a_signal_leaves_no_time_for_the_comparison_and_what_is_read_has_one(
    store: Store, monkeypatch: Monkey
) -> None:
    stop = Stop()

    def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    store.write_comparison(tables(store.folder)["summary"])
    monkeypatch.setattr(driver, "_run", stopped)
    schedule = Schedule([], Experiment(), store)
    with pytest.raises(KeyboardInterrupt), stop:
        driver._run_and_compare(schedule, Recorder(), None, stop)
    assert not (store.folder / "comparison.arrow").exists()
    assert "comparison" not in tables(store.folder)
    assert findings.tables(store.folder)["comparison"].num_rows == 2


def test_two_writers_lose_no_line_of_the_journal(store: Store, monkeypatch: Monkey) -> None:
    """The second one comes between where the first one looks and where it writes."""
    pread, mine = os.pread, journal.Journal(store.folder)
    other = journal.Journal(store.folder)

    def interrupted(handle: int, size: int, place: int) -> bytes:
        found = pread(handle, size, place)
        monkeypatch.setattr(os, "pread", pread)
        other.write(store.folder / "b.arrow", lambda path: path.write_bytes(b"b"))
        return found

    monkeypatch.setattr(os, "pread", interrupted)
    mine.write(store.folder / "a.arrow", lambda path: path.write_bytes(b"a"))
    assert all(mine.is_sound(store.folder / name) for name in ("a.arrow", "b.arrow"))


def test_a_lock_whose_holder_died_is_taken_over(store: Store) -> None:
    dead = {"host": "elsewhere", "pid": 1, "ticks": 1, "boot": "another"}
    (store.folder / lock.LOCK).write_text(json.dumps(dead))
    with store.opened():
        assert "elsewhere" not in (store.folder / lock.LOCK).read_text()


@pytest.mark.parametrize(
    ("changed", "is_free"),
    [
        ({}, False),
        ({"ticks": 1}, True),
        ({"boot": "of another machine with this name"}, False),
        ({"host": "elsewhere"}, False),
    ],
)
def test_where_there_is_no_flock_the_pid_and_its_start_decide(
    store: Store, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], is_free: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (store.folder / lock.LOCK).write_text(json.dumps(asdict(ProcessId.here()) | changed))
    if is_free:
        with store.opened():
            return
    with pytest.raises(UserError, match="is writing here"), store.opened():
        pass


# -- places that cannot be written


def test_a_full_disk_is_one_line_and_takes_nothing(store: Store) -> None:
    words = r"results cannot be written to .*: File too large; what is there is kept"
    with pytest.raises(UserError, match=words), small_files():
        write_run(store, RUN, status="failed")
    assert store.is_completed(RUN)
    assert not list(store.folder.glob("**/.*.tmp"))


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_in_place_of_a_folder_is_said_before_anything_starts(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*: Not a directory; make room"):
        check_writable(tmp_path / "file" / below, "results", "--result-dir")
    check_writable(tmp_path / "a" / "b", "results", "--result-dir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for command in (
        ["submit", "--device", "cpu", "--dry-run", "--result-dir"],
        ["calibrate", "--device", "cpu", "--out"],
    ):
        done = call(*command, tmp_path / "file" / below)
        assert (done.exit_code, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "Not a directory" in line


def test_a_lock_or_a_report_on_a_full_device_is_one_line(store: Store) -> None:
    (store.folder / lock.LOCK).symlink_to("/dev/full")
    with pytest.raises(UserError, match="results cannot be written to"), store.opened():
        pass
    done = call("report", store.folder, "--out", "/dev/full")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("limit", "soft", "words"),
    [
        (resource.RLIMIT_NOFILE, 64, "may open 64 files here"),
        (resource.RLIMIT_AS, 1 << 30, "may have 1024 MiB of addresses here"),
    ],
)
def test_a_shell_that_gives_ray_too_little_is_said(
    monkeypatch: pytest.MonkeyPatch, limit: int, soft: int, words: str
) -> None:
    limits.check_limits()
    other = resource.getrlimit

    def given(which: int) -> tuple[int, int]:
        return (soft, soft) if which == limit else other(which)

    monkeypatch.setattr(resource, "getrlimit", given)
    with pytest.raises(UserError, match=words):
        limits.check_limits()


def test_a_folder_that_ray_cannot_write_is_said_and_a_home_is_not_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    limits.check_limits()
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/x")
    with pytest.raises(UserError, match=r"cannot be written to .*; .* another RAY_TMPDIR"):
        limits.check_limits()


# -- identity


def test_a_folder_called_like_a_preset_does_not_change_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = identity_of(Experiment(model="tiny"))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    assert identity_of(Experiment(model="tiny")) == before
    assert identity_of(Experiment(model="./tiny")) != before


def test_every_published_result_is_still_read(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2] / "docs" / "results"
    folders = sorted(path.parent for path in root.glob("*/*/manifest.json"))
    trained = training.trained_at(folders)
    generated = [folder for folder in folders if folder not in trained]
    assert len(load(generated)) == len(generated) > 3
    assert trained
    assert all(training.findings_of([folder]).comparison for folder in trained)
    assert set(RUN_TABLES) <= {path.stem for path in folders[0].glob("*.arrow")}
    assert "counts as missing" not in capsys.readouterr().err
