"""Starts: fresh groups of workers, in which layouts take turns; how more are added, how an
interrupted one goes on, and how many requests a run has where it is to last some seconds."""

from __future__ import annotations

from dataclasses import replace

import fake_engine
import pytest
from driver_inputs import deployment, piloted, run
from fake_group import CLUSTER, installed
from stores import RUN
from summaries import write_run

from orchestrator.analysis.comparing.confidence import CONFIRMING
from orchestrator.cluster import hardware
from orchestrator.cluster.hardware import Gpu
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.run import manifest, observing
from orchestrator.run.observing import OBSERVED_TOKENS, short
from orchestrator.run.origin import Origin, check_origin
from orchestrator.store.lock import LOCK
from orchestrator.store.store import OBSERVED_TABLES, RUN_TABLES, Store
from workers.messages import Request, Work
from workers.records import STEPS

TWO_CELLS = [(fake_engine.SERVE, 0)] * 2


@pytest.fixture
def groups(monkeypatch):
    """The driver uses fake groups of workers, which this remembers."""
    return installed(monkeypatch)


def layouts(*names):
    return [deployment(name) for name in names]


def contents(folder):
    """The bytes of every part, by its place."""
    return {
        path.relative_to(folder): path.read_bytes()
        for table in (*RUN_TABLES, *OBSERVED_TABLES)
        for path in (folder / table).glob("*.arrow")
    }


# -- starts


def test_each_start_is_of_fresh_workers_and_another_layout_goes_first(groups, tmp_path):
    _, seen = run(layouts("tp1", "tp2"), tmp_path, num_starts=3, num_runs=2, num_warmups=1)
    assert seen.runs() == [
        (layout, start, index)
        for start, order in enumerate((("tp1", "tp2"), ("tp2", "tp1"), ("tp1", "tp2")))
        for layout in order
        for index in range(2)
    ]
    assert seen.builds() == 6
    assert [what for _, what in seen.phases].count("warming up") == 6
    assert seen.blocks() == [0] * 12
    served = [one.group for one in groups.served if len(one.work.requests) == 4]
    # Two timed runs, the unprofiled one and the profiled one.
    assert served == [number for number in range(1, 7) for _ in range(4)]
    assert not groups.alive


def test_starts_that_are_added_keep_those_that_are_there(groups, tmp_path):
    store, _ = run(layouts("tp1", "tp2"), tmp_path, num_warmups=0)
    before = contents(store.folder)
    again, seen = run(layouts("tp1", "tp2"), tmp_path, num_starts=2, num_warmups=0)
    assert (again.folder, seen.asked) == (store.folder, (2, 2))
    assert seen.runs() == [("tp2", 1, 0), ("tp1", 1, 0)]
    after = contents(store.folder)
    assert {place: after[place] for place in before} == before
    assert len(after) > len(before)


def test_a_layout_that_comes_later_gets_the_starts_of_the_others(groups, tmp_path):
    run(layouts("tp1"), tmp_path, num_starts=2, num_warmups=0)
    store, seen = run(layouts("tp1", "tp2"), tmp_path, num_starts=2, num_warmups=0)
    assert seen.runs() == [("tp2", 0, 0), ("tp2", 1, 0)]
    assert store.manifest()["meshes"] == {"tp1": [], "tp2": [["tp", 2]]}


def test_what_is_made_after_an_interruption_is_of_fresh_workers_and_another_block(groups, tmp_path):
    def interrupt(what):
        if what == "start 1/1 run 2/2":
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run(layouts("tp1", "tp2"), tmp_path, interrupt, num_runs=2, num_warmups=0)
    store, seen = run(layouts("tp1", "tp2"), tmp_path, num_runs=2, num_warmups=0)
    assert seen.runs() == [("tp1", 0, 1), ("tp2", 0, 0), ("tp2", 0, 1)]
    assert seen.blocks() == [1, 1, 1]
    assert [row["block"] for row in store.read("summary").to_pylist()] == [0, 1, 1, 1]
    assert len(groups.plans) == 1 + 2


def test_each_command_that_runs_something_is_a_block_with_an_entry_of_its_own(groups, tmp_path):
    def interrupt(what):
        if what.endswith("run 1/1"):
            raise KeyboardInterrupt

    store, first = run(layouts("tp1"), tmp_path, num_warmups=0)
    run(layouts("tp1"), tmp_path, num_warmups=0)  # has nothing to do
    with pytest.raises(SystemExit):  # keeps no run
        run(layouts("tp1"), tmp_path, interrupt, num_starts=2, num_warmups=0)
    _, second = run(layouts("tp1"), tmp_path, num_starts=2, num_warmups=0)
    assert first.blocks() + second.blocks() == [0, 1]
    blocks = store.manifest()["blocks"]
    node = {"host", "node", "cpu_model", "gpus", "gpu_uuids"}
    assert [set(one) for one in blocks] == [{"started_at", *node, "git_commit", "git_dirty"}] * 2
    assert [(one["gpus"], one["gpu_uuids"]) for one in blocks] == [([], [])] * 2  # on a CPU


def test_a_block_names_the_gpus_of_its_node(tmp_path, monkeypatch):
    two = [Gpu(index, "A GPU", f"GPU-{index}", 80 * 10**9, "580.1") for index in range(2)]
    monkeypatch.setattr(hardware, "gpus", lambda: two)
    store = Store(tmp_path)
    for block in range(2):
        manifest.write(store, Experiment(), layouts("tp2"), CLUSTER, "cuda", block)
    assert [one["gpu_uuids"] for one in store.manifest()["blocks"]] == [["GPU-0", "GPU-1"]] * 2


def test_a_start_is_added_until_the_starts_agree(groups, tmp_path):
    """The fake engine is as fast every time, so the second start, the first to give an interval,
    gives a narrow one, and the six that confirm it are the last."""
    asked = {"num_warmups": 0, "until_ci": 0.05}
    _, seen = run(layouts("tp1", "tp2"), tmp_path, **asked)
    assert seen.runs() == [
        (layout, start, 0)
        for start in range(2 + CONFIRMING)
        for layout in (("tp1", "tp2") if start % 2 == 0 else ("tp2", "tp1"))
    ]
    _, again = run(layouts("tp1", "tp2"), tmp_path, **asked)
    assert (again.asked, again.rows) == ((0, 2 * (2 + CONFIRMING)), [])


def test_a_cell_that_failed_gets_no_further_start_in_this_command(groups, tmp_path):
    orders = [(fake_engine.RAISE, 0), (fake_engine.SERVE, 0)]
    _, seen = run([deployment("tp1", orders)], tmp_path, num_starts=2, num_warmups=0)
    assert [(row.cell.max_concurrency, row.start, row.status) for row in seen.rows] == [
        (1, 0, "failed"),
        (2, 0, "completed"),
        (2, 1, "completed"),
    ]


def test_a_build_that_fails_costs_every_start_that_is_left(groups, tmp_path):
    broken = deployment("tp1", build_order=fake_engine.RAISE_OOM)
    _, seen = run([broken], tmp_path, num_starts=2)
    assert [(row.start, row.status) for row in seen.rows] == [(0, "failed"), (1, "failed")]
    assert seen.builds() == 1


# -- observed runs


def test_the_same_short_work_is_timed_in_every_cell_before_one_is_profiled(groups, tmp_path):
    run([deployment("tp1", TWO_CELLS)], tmp_path, num_starts=2, num_warmups=0)
    once = [
        ("tp1", 4, False),  # the timed runs
        ("tp1", 4, False),
        ("tp1", 4, False),  # four batches of the requests in flight
        ("tp1", 8, False),
        ("tp1", 4, True),
        ("tp1", 8, True),
    ]
    assert groups.asked() == once * 2


def test_each_start_observes_each_cell_beside_its_unprofiled_steps(groups, tmp_path, monkeypatch):
    seen, account = [], observing.account

    def recorded(spans, placement, timed, whole, **more):
        seen.append((timed, whole))
        return account(spans, placement, timed, whole, **more)

    monkeypatch.setattr(observing, "account", recorded)
    store, _ = run(layouts("tp2"), tmp_path, num_starts=2, num_warmups=0, save_spans=True)
    assert [whole for _, whole in seen] == [True, False]
    assert [sorted(one.rank for one in STEPS.rows(timed)) for timed, _ in seen] == [[0, 1]] * 2
    spans = store.read("spans")["start"].to_pylist()
    assert (spans.count(0), spans.count(1)) == (8, 4)  # two steps of two ranks, or one of them
    assert {row["start"] for row in store.read("parts").to_pylist()} == {0, 1}


def test_a_rank_that_was_not_observed_is_told_and_kept_with_the_reason(
    groups, tmp_path, monkeypatch
):
    """Nothing is tried again: an unreadable trace is no failure of the workers."""
    whole = fake_engine.FakeEngine.run

    def blind(engine, work):
        report = whole(engine, work)
        lost = work.observe and engine.rank == 1
        return replace(report, spans=None, unobserved="no trace") if lost else report

    monkeypatch.setattr(fake_engine.FakeEngine, "run", blind)
    store, seen = run(layouts("tp2"), tmp_path, num_warmups=0)
    (note,) = (line for line in seen.notes if "observed" in line)
    assert note.endswith("rank 1 could not be observed: no trace")
    rows = {(row["rank"], row["phase"]): row["reason"] for row in store.read("parts").to_pylist()}
    assert (rows[1, "prefill"], rows[1, "decode"]) == ("no trace", "no trace")
    assert sum(one.work.observe for one in groups.served) == 1


def test_an_observed_run_has_the_first_requests_all_there_at_once():
    requests = tuple(
        replace(one, output_len=40, arrival_s=1.0 * one.index) for one in fake_engine.requests(9)
    )
    work = short(Work(requests, 4))
    assert [one.prompt for one in work.requests][:9] == [one.prompt for one in requests]
    assert [one.index for one in work.requests] == list(range(16))
    assert {(one.output_len, one.arrival_s) for one in work.requests} == {(OBSERVED_TOKENS, 0.0)}
    assert (work.observe, work.is_open) == (False, False)


def test_an_observed_run_has_several_batches_only_where_few_requests_are_in_flight():
    requests = fake_engine.requests(40)
    served = {seats: len(short(Work(requests, seats)).requests) for seats in (1, 3, 8, 32, 64)}
    assert served == {1: 4, 3: 12, 8: 16, 32: 32, 64: 40}


def _talks(*turns: int) -> tuple[Request, ...]:
    """Conversations of so many turns, each with a prompt of its own."""
    made: list[Request] = []
    for count in turns:
        for turn in range(count):
            i = len(made)
            made.append(Request(i, (i,), 40, after=i - 1 if turn else None))
    return tuple(made)


@pytest.mark.parametrize(
    ("turns", "seats", "batches"),
    [
        ((20,), 8, [[0], [1], [2], [3]]),
        # of three conversations two are under way, and the third follows the first
        ((2, 3, 1), 2, [[0, 2], [1, 3], [5, 4], [0, 2]]),
        ((2, 3, 1), 4, [[0, 2, 5], [1, 3, 5], [0, 4, 5], [1, 2, 5]]),
    ],
)
def test_a_batch_of_an_observed_run_is_of_turns_of_different_conversations(turns, seats, batches):
    """As in the timed run, where one turn of a conversation is in flight."""
    work = short(Work(_talks(*turns), seats, reuse="conversation"))
    (size,) = {len(batch) for batch in batches}
    prompts = [one.prompt[0] for one in work.requests]
    assert [prompts[i : i + size] for i in range(0, len(prompts), size)] == batches
    assert (work.max_concurrency, work.reuse) == (size, None)
    assert {one.after for one in work.requests} == {None}


# -- pilots


def test_the_largest_count_that_any_layout_needs_is_that_of_all(groups, tmp_path):
    """tp1 serves its pilots in 0.04 s and tp2 in 0.08 s: in 0.5 s, and 5% more, tp1 serves 13.1
    requests one by one and 26.3 two by two."""
    fast, slow = deployment("tp1", TWO_CELLS), deployment("tp2", TWO_CELLS, slower=1.0)
    store, seen = run([piloted(fast), piloted(slow)], tmp_path, min_duration=0.5, num_warmups=0)
    assert store.manifest()["num_prompts"] == {"short.c1": 14, "short.c2": 28}
    assert {(row.cell.max_concurrency, row.conditions.num_prompts) for row in seen.rows} == {
        (1, 14),
        (2, 28),
    }
    assert groups.asked()[:4] == [
        ("tp1", 1, False),
        ("tp1", 2, False),
        ("tp2", 1, False),
        ("tp2", 2, False),
    ]
    assert [what for _, what in seen.phases].count("pilot") == 4
    assert seen.builds() == 4
    assert len(seen.rows) == store.read("summary").num_rows == 4  # a pilot is no result


def test_a_count_that_was_settled_is_used_as_it_is(groups, tmp_path):
    run([piloted(deployment("tp1"))], tmp_path, min_duration=0.5, num_warmups=0)
    groups.served.clear()
    both = [piloted(deployment("tp1")), piloted(deployment("tp2", slower=-0.5))]
    store, seen = run(both, tmp_path, min_duration=0.5, num_warmups=0, num_starts=2)
    assert "pilot" not in {what for _, what in seen.phases}
    assert {requests for _, requests, _ in groups.asked()} == {14, 4}
    assert store.manifest()["num_prompts"] == {"short.c1": 14}


def test_a_run_that_is_shorter_than_was_asked_for_is_told_once_a_cell(groups, tmp_path):
    _, seen = run(
        [piloted(deployment("tp1"))], tmp_path, min_duration=0.5, num_warmups=0, num_starts=2
    )
    assert seen.notes == [
        "tiny.tp1.fake.float32.short.c1: a run took 0.0 s, less than the 0.5 s of --min-duration: "
        "its 14 requests were settled by the pilots, and every layout serves the same"
    ]


def test_a_layout_whose_pilot_fails_has_failed_and_the_others_settle_the_count(groups, tmp_path):
    orders = [(fake_engine.RAISE, 0), (fake_engine.SERVE, 0)]
    planned = [
        piloted(deployment("tp1", orders)),
        piloted(deployment("tp1", TWO_CELLS, fake_engine.RAISE_OOM, "float16")),
        piloted(deployment("tp2", TWO_CELLS)),
    ]
    store, seen = run(planned, tmp_path, min_duration=0.5, num_warmups=0)
    assert [(row.cell.dtype, *end) for row, end in zip(seen.rows, seen.ends(), strict=True)] == [
        ("float32", "tp1", 1, "failed", "pilot: ValueError: told to raise"),
        ("float16", "tp1", 1, "failed", "build: OutOfMemoryError: tried to allocate 20 GiB"),
        ("float16", "tp1", 2, "failed", "build: OutOfMemoryError: tried to allocate 20 GiB"),
        ("float32", "tp1", 2, "completed", None),
        ("float32", "tp2", 1, "completed", None),
        ("float32", "tp2", 2, "completed", None),
    ]
    assert store.manifest()["num_prompts"] == {"short.c1": 14, "short.c2": 28}


def test_an_ablated_layout_has_no_pilot_and_fails_where_the_whole_one_does(groups, tmp_path):
    orders = [(fake_engine.RAISE, 0), (fake_engine.SERVE, 0)]
    planned = [
        piloted(deployment("tp2", orders)),
        piloted(deployment("tp2", TWO_CELLS, ablation="comm")),
    ]
    store, seen = run(planned, tmp_path, min_duration=0.5, num_warmups=0)
    assert [(row.cell.ablation, row.cell.max_concurrency, row.reason) for row in seen.rows] == [
        ("none", 1, "pilot: ValueError: told to raise"),
        ("comm", 1, "pilot: no layout settled how many requests short.c1 has"),
        ("none", 2, None),
        ("comm", 2, None),
    ]
    assert [what for _, what in seen.phases].count("pilot") == 2
    assert store.manifest()["num_prompts"] == {"short.c2": 28}


def test_a_pilot_is_not_watched_by_nsight_systems(groups, tmp_path):
    planned = piloted(deployment("tp1"))
    watched = replace(planned, plan=replace(planned.plan, nsys_dir="/reports"))
    run([watched], tmp_path, min_duration=0.5, num_warmups=0, nsys=True)
    assert [plan.nsys_dir for plan in groups.plans] == [None, "/reports"]


def test_pilots_that_are_interrupted_are_served_again(groups, tmp_path):
    def interrupt(what):
        if what == "pilot":
            raise KeyboardInterrupt

    planned = [piloted(deployment("tp1"))]
    with pytest.raises(SystemExit):
        run(planned, tmp_path, interrupt, min_duration=0.5, num_warmups=0)
    store, seen = run(planned, tmp_path, min_duration=0.5, num_warmups=0)
    assert [what for _, what in seen.phases].count("pilot") == 1
    assert store.manifest()["num_prompts"] == {"short.c1": 14}


# -- where the results that are there were made


def gpus(*uuids):
    return [Gpu(index, "A GPU", uuid, 80 * 10**9, "580.1") for index, uuid in enumerate(uuids)]


def on_cpu(monkeypatch, model):
    monkeypatch.setattr(hardware, "cpu_model", lambda: model)


def test_runs_of_another_cpu_are_refused_unless_they_are_asked_for(groups, tmp_path, monkeypatch):
    on_cpu(monkeypatch, "EPYC")
    run(layouts("tp1"), tmp_path, num_warmups=0)
    on_cpu(monkeypatch, "Xeon")
    words = r"results of another node, EPYC \(here Xeon\); give another --result-dir, or --allow"
    with pytest.raises(UserError, match=words):
        run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=2)
    run(layouts("tp1"), tmp_path, num_warmups=0)  # has nothing to add
    asked = {"num_warmups": 0, "num_starts": 3, "allow_other_node": True}
    store, _ = run(layouts("tp1"), tmp_path, **asked)
    rows = store.read("summary").to_pylist()
    assert [(row["block"], row["node"]) for row in rows] == [(0, 0), (1, 1), (1, 1)]
    assert [block["node"] for block in store.manifest()["blocks"]] == [0, 1]
    on_cpu(monkeypatch, "EPYC")
    store, _ = run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=4)
    assert [block["node"] for block in store.manifest()["blocks"]] == [0, 1, 0]


@pytest.mark.parametrize(("there", "is_same"), [(["GPU-0"], True), (["GPU-9"], False), ([], True)])
def test_a_gpu_in_common_makes_it_the_same_node_and_a_host_name_does_not(
    tmp_path, monkeypatch, there, is_same
):
    store = Store(tmp_path)
    store.create()
    store.update_manifest(blocks=[{"host": "vm", "gpu_uuids": there}])
    write_run(store, RUN)
    mine = Origin(frozenset({"A GPU"}), tuple(gpus("GPU-0", "GPU-1")), "EPYC")
    if is_same:
        check_origin(store, mine, False)
        return
    with pytest.raises(UserError, match=r"another node, GPU-9 \(here GPU-0 GPU-1\)"):
        check_origin(store, mine, False)
    check_origin(store, mine, True)


@pytest.mark.parametrize("package", ["ray", "transformers", "torch"])
def test_runs_of_another_version_are_refused_whatever_is_allowed(groups, tmp_path, package):
    store, _ = run(layouts("tp1"), tmp_path, num_warmups=0)
    store.update_manifest(versions={**store.manifest()["versions"], package: "0.1"})
    with pytest.raises(UserError, match=rf"holds results of {package} 0\.1 \(here "):
        run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=2, allow_other_node=True)


def test_where_the_manifest_is_damaged_nobody_knows_the_node(groups, tmp_path):
    store, _ = run(layouts("tp1"), tmp_path, num_warmups=0)
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read, so nobody knows on which"):
        run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=2)
    store, seen = run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=2, allow_other_node=True)
    assert seen.blocks() == [1]
    assert store.manifest()["blocks"][0] == {}


def test_finished_results_in_a_folder_that_cannot_be_written_are_shown(
    groups, tmp_path, monkeypatch
):
    store, _ = run(layouts("tp1"), tmp_path, num_warmups=0)
    before = written(store.folder)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("orchestrator.store.journal.replace_file", refuse)
    monkeypatch.setattr("orchestrator.store.folders.tempfile.TemporaryFile", refuse)
    again, seen = run(layouts("tp1"), tmp_path, num_warmups=0)
    assert (again.folder, seen.asked) == (store.folder, (0, 1))
    (note,) = seen.notes
    assert note.startswith("the comparison was not kept: results cannot be written to")
    assert written(store.folder) == before
    with pytest.raises(UserError, match="Read-only file system; make room there"):
        run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=2)


def written(folder):
    """When each file of results was written. The lock is no result: here it can be taken."""
    files = (path for path in folder.rglob("*") if path.name != LOCK)
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_disk_that_fills_up_ends_the_sweep_with_one_line_and_keeps_what_is_there(
    groups, tmp_path, monkeypatch
):
    write = Store.write_run

    def full(self, run, summary, tables):
        if run.start == 1:
            monkeypatch.setattr("orchestrator.store.journal.replace_file", no_space)
        write(self, run, summary, tables)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_run", full)
        with pytest.raises(UserError, match="No space left on device; what is there is kept"):
            run(layouts("tp1"), tmp_path, num_warmups=0, num_starts=2)
    monkeypatch.undo()
    assert not groups.alive
