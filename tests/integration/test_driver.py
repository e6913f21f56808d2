"""What the driver does when all is well, when something fails, and when it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import fake_engine
import psutil
import pytest
from driver_inputs import TIMEOUT_S, deployment, run
from fake_group import FakeGroup, installed
from summaries import measured
from variables import without_ray

from orchestrator.analysis.load import summaries
from orchestrator.analysis.summary import MEASURED
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.group import WorkerGroup
from orchestrator.errors import ClusterLost, UserError
from orchestrator.experiment import Experiment, Run
from orchestrator.run import driver
from orchestrator.store.arrow_files import read_part
from orchestrator.store.export import pack
from orchestrator.store.folders import find, folder_of
from orchestrator.store.store import RUN_TABLES, Store

HANG_S = 3.0  # to wait for a run that hangs


@pytest.fixture
def shared(ray_cluster, monkeypatch):
    """The driver uses the Ray that the tests share."""
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))


@pytest.fixture
def groups(monkeypatch):
    """The driver uses groups of this process, where Ray is not what a test is about."""
    return installed(monkeypatch)


def alive_actors():
    from ray.util import list_named_actors

    return list_named_actors()


# -- all is well


def test_a_deployment_is_built_once_and_serves_its_cells(shared, tmp_path):
    store, seen = run(
        [deployment("tp2", [(fake_engine.SERVE, 0)] * 2)],
        tmp_path,
        num_runs=2,
        num_warmups=1,
        metadata={"k": "v"},
    )
    first, second = (f"tiny.tp2.fake.float32.short.c{concurrency}" for concurrency in (1, 2))
    assert seen.phases[1:] == [
        (first, "warming up"),
        (first, "start 1/1 run 1/2"),
        (first, "start 1/1 run 2/2"),
        (second, "warming up"),
        (second, "start 1/1 run 1/2"),
        (second, "start 1/1 run 2/2"),
        (first, "timing what is observed"),
        (second, "timing what is observed"),
        (first, "observing"),
        (second, "observing"),
    ]
    rows = summaries(store)
    assert len(rows) == 4
    row = rows[0]
    assert (row.status, row.throughput.completed) == ("completed", 4)
    assert (row.conditions.num_gpus, row.conditions.device_name) == (2, "cpu")
    assert row.throughput.output_throughput == pytest.approx(4 * 4 / 0.04)
    assert list(row.memory.peak_memory_bytes_per_rank) == [100, 101]
    assert row.traffic.comm_bytes == 192
    exposed = row.step.decode.comm_exposed
    assert (exposed.pct, exposed.pct_worst) == (pytest.approx(35), pytest.approx(40))
    assert row.startup.startup_s > row.startup.build_s > 0
    assert row.conditions.metadata == '{"k": "v"}'
    assert {
        table: store.read(table).num_rows
        for table in ("requests", "steps", "collectives", "parts", "spans")
    } == {"requests": 16, "steps": 8, "collectives": 8, "parts": 4, "spans": 8}
    assert {
        (r["max_concurrency"], r["run"], r["rank"]) for r in store.read("telemetry").to_pylist()
    } == {(cell, index, rank) for cell in (1, 2) for index in (0, 1) for rank in (0, 1)}
    assert (row.energy.energy_j, row.energy.power_valid) == (None, None)
    assert read_part(store.folder / "comparison.arrow").num_rows == 2
    assert {"versions", "topology", "git_commit", "finished_at"} <= store.manifest().keys()
    assert store.manifest()["environment"]["NCCL_NVLS_ENABLE"] == "0"
    assert alive_actors() == []

    layout = deployment("tp2", [(fake_engine.SERVE, 0)] * 2)
    again, seen = run([layout], tmp_path, num_runs=2, num_warmups=1)
    assert (again.folder, seen.asked, seen.phases) == (store.folder, (0, 4), [])


def test_packed_results_are_refused_before_anything_is_started_and_stay_as_they_are(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "connect", lambda *_: pytest.fail("a cluster was asked for"))
    asked = Experiment(result_dir=tmp_path)
    packed = folder_of(asked)
    pack({"summary": MEASURED.make([measured()])}, "{}", packed)
    before = {path.name: path.read_bytes() for path in packed.iterdir()}
    with pytest.raises(UserError, match="packed results, to which no run can be added"):
        run([deployment("tp1")], tmp_path)
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == before


# -- failures


def test_a_failure_costs_its_cell_alone_and_leaves_no_actor(shared, tmp_path, monkeypatch):
    serve = WorkerGroup.run

    def soon_over(group, work, timeout_s):
        assert timeout_s == TIMEOUT_S
        hangs = work.requests[0].prompt[0] == fake_engine.HANG
        return serve(group, work, HANG_S if hangs else timeout_s)

    monkeypatch.setattr(WorkerGroup, "run", soon_over)
    two_ranks = deployment("tp2", [(fake_engine.HANG, 1), (fake_engine.SERVE, 0)])
    one_rank = deployment("tp1", [(fake_engine.RAISE, 0), (fake_engine.DIE, 0)])
    no_memory = deployment("tp1", build_order=fake_engine.RAISE_OOM, dtype="float16")
    store, seen = run(
        [two_ranks, one_rank, no_memory, deployment("tp1", dtype="bfloat16")],
        tmp_path,
        num_warmups=0,
    )
    assert seen.ends() == [
        ("tp2", 1, "failed", "timeout: the run took longer than 3 s (waiting for rank 1)"),
        ("tp2", 2, "completed", None),
        ("tp1", 1, "failed", "rank 0: ValueError: told to raise"),
        (
            "tp1",
            2,
            "failed",
            "the worker of rank 0 died (it crashed or was killed; the kernel's log says whether "
            "memory ran out)",
        ),
        ("tp1", 1, "failed", "build: out_of_memory: rank 0: tried to allocate 20 GiB"),
        ("tp1", 1, "completed", None),
    ]
    assert seen.builds() == 6
    assert alive_actors() == []
    hung = next(row for row in summaries(store) if str(row.reason).startswith("timeout"))
    began = datetime.fromisoformat(hung.conditions.started_at).timestamp()
    (kept,) = (store.folder / "summary").glob("*.tp2.*.c1.s0.r0.arrow")
    assert kept.stat().st_mtime - began > HANG_S - 1
    assert (
        "and to say more"
        in next(
            (store.folder / "failures").glob("tiny.tp1.fake.float32.*.c1.s0.r0.txt")
        ).read_text()
    )


def test_a_failed_run_is_tried_again_and_finished_ones_are_not(groups, tmp_path):
    orders = [(fake_engine.SERVE, 0), (fake_engine.RAISE, 0)]
    run([deployment("tp1", orders)], tmp_path, num_warmups=0)
    store, seen = run([deployment("tp1", [(fake_engine.SERVE, 0)] * 2)], tmp_path, num_warmups=0)
    assert (seen.asked, seen.ends()) == ((1, 1), [("tp1", 2, "completed", None)])
    assert [row.status for row in summaries(store)] == ["completed"] * 2
    assert not list((store.folder / "failures").iterdir())


def test_a_remark_of_any_rank_on_how_it_was_built_is_told_and_kept(groups, tmp_path, monkeypatch):
    build = FakeGroup.build

    def with_a_remark(group, timeout_s):
        first, second = build(group, timeout_s)
        return [first, replace(second, remark="no page is pinned")]

    monkeypatch.setattr(FakeGroup, "build", with_a_remark)
    store, seen = run([deployment("tp2")], tmp_path, num_warmups=0)
    assert seen.notes[0] == "tiny.tp2.fake.float32: no page is pinned"
    said = store.manifest()["engine_settings"]["tiny.tp2.fake.float32"]
    assert said == {"remark": "no page is pinned"}


def test_a_cell_that_could_not_be_observed_keeps_its_runs(groups, tmp_path, monkeypatch):
    def interrupt(what):
        if what == "observing":
            monkeypatch.setattr(FakeGroup, "run", _raise_run_failed)

    store, seen = run([deployment("tp1")], tmp_path, interrupt, num_warmups=0)
    assert seen.ends() == [("tp1", 1, "completed", None)]
    assert "could not be observed: no profiler" in seen.notes[0]
    assert summaries(store)[0].step.decode.comm_busy.pct is None
    assert groups.alive == set()


def test_an_observed_run_that_fails_costs_no_timed_one(groups, tmp_path, monkeypatch):
    """The profiler brings the workers down and they cannot be built again: the next start is as if
    nothing was."""
    start, serve = groups.start, FakeGroup.run
    down: list[bool] = []

    def observing_fails(group, work, timeout_s):
        if work.observe:
            down.append(True)
            raise RunFailed("no profiler")
        return serve(group, work, timeout_s)

    def cannot_start(*arguments):
        if len(down) == 1:
            down.append(True)
            raise RunFailed("no room")
        return start(*arguments)

    monkeypatch.setattr(FakeGroup, "run", observing_fails)
    monkeypatch.setattr(WorkerGroup, "start", cannot_start)
    layouts = [deployment("tp1", [(fake_engine.SERVE, 0)] * 2), deployment("tp1", dtype="float16")]
    _, seen = run(layouts, tmp_path, num_starts=2, num_warmups=0)
    assert [row.status for row in seen.rows] == ["completed"] * 6
    assert [note.rpartition(": ")[2] for note in seen.notes[:2]] == ["no profiler", "no room"]
    assert "build: no room" in seen.notes[1]


def test_a_build_that_fails_within_a_start_is_told_of_every_run_it_costs(
    groups, tmp_path, monkeypatch
):
    start, starts = groups.start, []

    def second_start_fails(*arguments):
        starts.append(arguments)
        if len(starts) == 2:
            raise RunFailed("no room")
        return start(*arguments)

    monkeypatch.setattr(WorkerGroup, "start", second_start_fails)
    orders = [(fake_engine.SERVE, 0), (fake_engine.RAISE, 0), (fake_engine.SERVE, 0)]
    _, seen = run([deployment("tp1", orders)], tmp_path, num_runs=2, num_warmups=0)
    assert [(row.cell.max_concurrency, row.run, row.status) for row in seen.rows] == [
        (1, 0, "completed"),
        (1, 1, "completed"),
        (2, 0, "failed"),
        (3, 0, "failed"),
        (3, 1, "failed"),
    ]


def test_a_command_that_stops_before_a_cell_is_observed_observes_it_when_it_comes_again(
    groups, tmp_path
):
    """The run is not made again, and its part stays as it is."""

    def interrupt(what):
        if what == "observing":
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run([deployment("tp1")], tmp_path, interrupt, num_warmups=0)
    kept = content(find(tmp_path)[0])
    assert set(kept) >= {"summary", "requests"}
    store, again = run([deployment("tp1")], tmp_path, num_warmups=0)
    assert [what for _, what in again.phases] == [
        "building",
        "timing what is observed",
        "observing",
    ]
    assert summaries(store)[0].step.decode.comm_exposed.pct is not None
    assert content(store.folder) == kept


def content(folder):
    """The bytes of every part of a run, by table."""
    return {
        table: [path.read_bytes() for path in sorted((folder / table).iterdir())]
        for table in RUN_TABLES
        if any((folder / table).iterdir())
    }


def test_what_was_observed_is_kept_once_a_start_however_many_runs_it_has(shared, tmp_path):
    store, _ = run([deployment("tp2")], tmp_path, num_starts=2, num_runs=2, num_warmups=0)
    assert [len(list((store.folder / table).iterdir())) for table in ("summary", "parts")] == [4, 2]
    exposed = [row.step.decode.comm_exposed.pct for row in summaries(store)]
    assert exposed == [pytest.approx(35)] * 4
    assert [processes(store, start, 0) for start in (0, 1)] == [
        processes(store, start, 1) for start in (0, 1)
    ]
    assert processes(store, 0, 0).isdisjoint(processes(store, 1, 0))


def processes(store, start, index):
    """Those that made a run."""
    rows = store.read("telemetry").to_pylist()
    return {row["process_id"] for row in rows if (row["start"], row["run"]) == (start, index)}


def _raise_run_failed(*_):
    raise RunFailed("no profiler")


# -- being stopped


def test_ctrl_c_leaves_no_actor_and_says_how_to_go_on(shared, tmp_path):
    def interrupt(what):
        if what == "start 1/1 run 1/1":
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run([deployment("tp1")], tmp_path, interrupt)
    assert stopped.value.code == 130
    assert alive_actors() == []


def test_after_a_warning_the_run_in_flight_is_finished_and_kept_and_no_other_begins(
    groups, tmp_path
):
    def warn(what):
        if what == "start 1/1 run 1/2":
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(SystemExit) as stopped:
        run([deployment("tp1")], tmp_path, warn, num_runs=2, num_warmups=0)
    assert stopped.value.code == 138
    kept = Store(find(tmp_path)[0])
    assert len(list((kept.folder / "summary").iterdir())) == 1
    _, seen = run([deployment("tp1")], tmp_path, num_runs=2, num_warmups=0)
    assert (seen.asked, seen.ends()) == ((1, 1), [("tp1", 1, "completed", None)])


def test_a_local_ray_that_dies_is_started_once_more_and_the_run_in_flight_made_again(
    groups, tmp_path, monkeypatch
):
    serve, served = FakeGroup.run, []

    def dies_with_ray(group, work, timeout_s):
        served.append(work)
        if len(served) in deaths:
            raise ClusterLost("the raylet of local Ray died")
        return serve(group, work, timeout_s)

    monkeypatch.setattr(FakeGroup, "run", dies_with_ray)
    layouts = [deployment("tp1", [(fake_engine.SERVE, 0)] * 2)]
    deaths = {2}
    store, seen = run(layouts, tmp_path / "once", num_warmups=0)
    assert [row.status for row in seen.rows] == ["completed"] * 2
    assert seen.notes == [
        "the raylet of local Ray died; it is started once more, and the run in flight made again"
    ]
    assert "finished_at" in store.manifest()
    deaths = {2, 3}
    served.clear()
    store, seen = run(layouts, tmp_path / "twice", num_warmups=0)
    assert seen.ends() == [("tp1", 1, "completed", None)]
    assert seen.notes[-1].startswith("Stopped: the raylet of local Ray died. Every finished run is")
    assert read_part(store.folder / "comparison.arrow").num_rows == 1
    assert groups.alive == set()


@contextlib.contextmanager
def hanging_driver(site: str, folder: Path):
    """A driver in a session of its own, after its first run and in the second, which hangs."""
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "interrupted_run.py"),
        site,
        str(folder),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=without_ray()
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "c2 start 1/1 run 1/1" in line:
                break
        time.sleep(1.0)  # let the workers get into it
        yield process
    finally:
        for left in session(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(10)


def session(leader: int) -> list[psutil.Process]:
    """Every process of the session of `leader`, zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def completed(folder: Path) -> list[int]:
    """Concurrencies of the cells whose run is on disk."""
    store = Store(find(folder)[0])
    cells = deployment("tp1", [(0, 0)] * 2).cells
    return [cell.cell.max_concurrency for cell in cells if store.is_completed(Run(cell.cell, 0, 0))]


@pytest.mark.ray
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_the_foreground_leaves_no_process_and_keeps_what_is_done(
    number, status, fake_site, tmp_path
):
    with hanging_driver(fake_site, tmp_path) as process:
        os.killpg(process.pid, number)  # as a terminal does: to everything in the foreground
        said, _ = process.communicate(timeout=120)
        assert process.returncode == status
        assert "the same command again goes on from there" in said
        assert session(process.pid) == []
    assert completed(tmp_path) == [1]
