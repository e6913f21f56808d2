"""The kernels of a decode step: what Nsight Compute wrote of them, which take most of it, when they
are counted, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_engine
import fake_ncu
import pytest
from driver_inputs import deployment, run
from fake_group import FakeGroup, Groups, installed
from fake_ncu import MATMUL, NORM

from orchestrator.analysis.kernels import (
    CELL_KERNELS,
    CellKernel,
    read_kernels,
    refusal,
    top_kernels,
    unknown,
)
from orchestrator.cluster.failures import RunFailed
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan.planning import plan_experiment
from orchestrator.plan.remarks import remarks
from orchestrator.report.kernels import short_name
from orchestrator.store.identity import identity_of
from orchestrator.store.schema import CellKey
from orchestrator.store.store import COUNTED, Store
from strategies.shapes import Topology
from workers.messages import Work
from workers.records import COUNTERS
from workers.rows import nothing

CELL = replace(nothing(CellKey), strategy="tp2")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """The driver uses fake groups of workers, under an ncu that counts three kernels."""
    made = installed(monkeypatch)
    made.counted = fake_ncu.output()
    return made


# -- what Nsight Compute writes


def test_a_kernel_has_its_figures_in_our_units() -> None:
    first, second, third = read_kernels(fake_ncu.output(), rank=1, num_requests=8)
    assert (first.rank, first.num_requests, first.number, first.kernel) == (1, 8, 0, MATMUL)
    assert (first.block, first.grid) == ("(384, 1, 1)", "(132, 1, 1)")
    assert [getattr(first, name) for name in COUNTERS] == [
        *(pytest.approx(40.96), 159_383_552, 81.25, 161_480_704, 33.1, 1.3, 168, 18.75, 12.5)
    ]
    assert (second.kernel, second.time_us) == (NORM, pytest.approx(2.048))
    assert third.number == 2


def test_what_was_not_counted_is_null() -> None:
    first, second, third = read_kernels(fake_ncu.output(), 0, 8)
    assert (second.dram_bytes, second.dram_pct, third.tensor_pct) == (None, 1.5, None)
    assert unknown([first, second, third]) == []
    lacking = [replace(one, l2_hit_pct=None) for one in (first, second)]
    assert unknown(lacking) == ["lts__t_sector_hit_rate.pct"]


@pytest.mark.parametrize(
    ("unit", "text", "us"),
    [
        ("nsecond", "1,500", 1.5),
        ("usecond", "1.5", 1.5),
        ("ms", "1.5", 1500.0),
        ("second", "1.5e-06", 1.5),
        ("fortnight", "1", None),
    ],
)
def test_units_of_several_versions_are_known_and_others_are_not_guessed(
    unit: str, text: str, us: float | None
) -> None:
    written = (
        '"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum"\n'
        f'"","","","","{unit}"\n"0","k","(1, 1, 1)","(1, 1, 1)","{text}"\n'
    )
    (kernel,) = read_kernels(written, 0, 1)
    assert kernel.time_us == (None if us is None else pytest.approx(us))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (fake_ncu.DENIED, "NVreg_RestrictProfilingToAdminUsers=0"),
        (
            "==ERROR== Profiling failed because a driver resource was unavailable. Ensure that no "
            "other tool (like DCGM) is concurrently collecting profiling data.",
            "dcgmi profile --pause",
        ),
        ("==ERROR== Failed to find metric regex:^dram__bytes", "does not know a metric"),
        ("==PROF== Connected\n==ERROR== The application returned 9.\n", "The application returned"),
    ],
)
def test_why_nothing_was_counted_is_said_with_what_to_do(written: str, said: str) -> None:
    assert read_kernels(written, 0, 8) == []
    assert said in (refusal(written) or "")


def test_a_text_without_errors_gives_no_reason() -> None:
    assert refusal(fake_ncu.output()) is None
    assert read_kernels("", 0, 8) == []


# -- the kernels that take most of a step


def kernel(name: str, us: float | None, cell: CellKey = CELL, **values: object) -> CellKernel:
    fields = {"kernel": name, "time_us": us, "rank": 0, "num_requests": 8, **values}
    return replace(nothing(CellKernel), cell=cell, start=0, **fields)


def test_launches_of_one_kernel_count_together_by_their_time() -> None:
    first, second = top_kernels(
        [
            kernel("norm", 10.0, registers=32),
            kernel("matmul", 60.0, dram_pct=90.0, l2_hit_pct=10.0, l2_bytes=300, registers=128),
            kernel("matmul", 30.0, dram_pct=60.0, l2_hit_pct=50.0, l2_bytes=100, registers=168),
        ],
        [CELL],
    )
    assert (first.place, first.kernel, first.calls, first.total_us) == (1, "matmul", 2, 90.0)
    assert (first.share_pct, first.registers) == (90.0, 168)
    assert first.dram_pct == pytest.approx(80.0)
    assert first.l2_hit_pct == pytest.approx(20.0)
    assert (second.place, second.kernel, second.share_pct) == (2, "norm", 10.0)
    assert (second.dram_pct, second.tensor_pct) == (None, None)


def test_ten_kernels_of_each_cell_are_shown_and_only_of_those_that_are_asked_for() -> None:
    other = replace(CELL, strategy="pp2")
    found = [kernel(f"k{i}", float(i + 1)) for i in range(12)]
    found += [kernel("k", 1.0, other), kernel("unknown", None, other)]
    top = top_kernels(found, [CELL])
    assert [one.kernel for one in top] == [f"k{i}" for i in range(11, 1, -1)]
    assert {one.cell for one in top} == {CELL}
    assert next(one.kernel for one in top_kernels(found, [other, CELL])) == "k"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (NORM, "norm_kernel<c10::BFloat16, 8>"),
        (MATMUL, MATMUL),
        ("_decode", "_decode"),
        ("void at::native::fill<4>(int, float)", "at::native::fill<4>"),
        ("void at::<unnamed>::pick<long, (int)-2>(T1, long)", "at::pick<long, (int)-2>"),
    ],
)
def test_a_kernel_is_shown_without_its_arguments(name: str, short: str) -> None:
    assert short_name(name) == short


# -- when they are counted


def counted(groups: Groups) -> list[tuple[int, str]]:
    return [(one.group, one.layout) for one in groups.served if one.work.count]


def kept(store: Store) -> list[CellKernel]:
    table = store.read(COUNTED[0])
    return [] if table is None else CELL_KERNELS.rows(table)


def test_kernels_are_counted_last_in_workers_of_their_own(groups: Groups, tmp_path: Path) -> None:
    cells = [(fake_engine.SERVE, 0)] * 2
    store, seen = run([deployment("tp2", cells)], tmp_path, ncu=True, num_warmups=0, num_starts=2)
    assert counted(groups) == [(2, "tp2"), (3, "tp2")]  # a group for each cell; the last: start 1
    assert len(groups.plans) == 4
    assert [what for _, what in seen.phases].count("counting kernels") == 2
    watched = groups.plans[1]
    name = "tiny.tp2.fake.float32.short.c1.s0"
    assert watched.ncu_file == str(store.folder.absolute() / "ncu" / f"{name}.csv")
    assert (watched.switches.cuda_graphs, watched.timeout_s) == ("off", 3600.0)
    assert [groups.plans[i].ncu_file for i in (0, 3)] == [None, None]
    assert [(one.cell.max_concurrency, one.number) for one in kept(store)] == [
        (concurrency, number) for concurrency in (1, 2) for number in range(3)
    ]
    assert {(one.num_requests, one.start, one.kernel) for one in kept(store)} == {
        (1, 0, MATMUL),
        (1, 0, NORM),
    }
    assert len(seen.rows) == 4  # what is counted is no run


def test_results_that_are_there_get_counters_and_none_twice(groups: Groups, tmp_path: Path) -> None:
    before, _ = run([deployment("tp1")], tmp_path, num_warmups=0)
    store, seen = run([deployment("tp1")], tmp_path, num_warmups=0, ncu=True)
    assert (store.folder, seen.rows) == (before.folder, [])
    assert len(kept(store)) == 3
    run([deployment("tp1")], tmp_path, num_warmups=0, ncu=True)
    assert len(counted(groups)) == 1


def test_a_layout_of_which_something_is_left_out_is_not_counted(
    groups: Groups, tmp_path: Path
) -> None:
    run([deployment("tp2", ablation="comm")], tmp_path, num_warmups=0, ncu=True)
    assert counted(groups) == []


def test_counters_that_are_denied_cost_no_run(groups: Groups, tmp_path: Path) -> None:
    groups.counted = fake_ncu.DENIED
    store, seen = run([deployment("tp1")], tmp_path, ncu=True, num_warmups=0)
    (note,) = seen.notes
    assert note.startswith("tiny.tp1.fake.float32.short.c1.s0: its kernels were not counted: the")
    assert "ERR_NVGPUCTRPERM" in note
    assert [row.status for row in seen.rows] == ["completed"]
    assert kept(store) == []
    (story,) = (store.folder / "failures").iterdir()
    assert "==ERROR== ERR_NVGPUCTRPERM" in story.read_text()
    assert not groups.alive


def test_a_rank_that_ncu_brought_down_is_told_with_what_ncu_says(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = FakeGroup.run

    def dies(self: FakeGroup, work: Work, timeout_s: float) -> object:
        if work.count:
            raise RunFailed("rank 0 died", "a traceback")
        return serve(self, work, timeout_s)

    monkeypatch.setattr(FakeGroup, "run", dies)
    for written, said in ((fake_ncu.DENIED, "ERR_NVGPUCTRPERM"), ("", "rank 0 died")):
        groups.counted = written
        _, seen = run([deployment("tp1")], tmp_path, ncu=True, num_warmups=0)
        assert said in seen.notes[0]
        assert len(seen.notes) == 1


def test_an_ncu_that_starts_no_rank_is_told_with_what_it_says(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = FakeGroup.build

    def fails(self: FakeGroup, timeout_s: float) -> object:
        if self.plan.ncu_file is None:
            return build(self, timeout_s)
        written = Path(self.plan.ncu_file)
        written.parent.mkdir()
        written.write_text("==ERROR== Failed to find metric regex:^dram__bytes\n")
        raise RunFailed("timeout: the start took longer than 120 s")

    monkeypatch.setattr(FakeGroup, "build", fails)
    _, seen = run([deployment("tp1")], tmp_path, ncu=True, num_warmups=0)
    (note,) = seen.notes
    assert "this Nsight Compute does not know a metric" in note
    assert not groups.alive


def test_a_metric_that_is_never_there_is_told(groups: Groups, tmp_path: Path) -> None:
    groups.counted = fake_ncu.output().replace("lts__t_bytes.sum", "lts__something_else.sum")
    store, seen = run([deployment("tp1")], tmp_path, ncu=True, num_warmups=0)
    assert seen.notes == [
        "tiny.tp1.fake.float32.short.c1.s0: Nsight Compute gave no lts__t_bytes.sum"
    ]
    assert [one.l2_bytes for one in kept(store)] == [None] * 3


# -- what is asked for


def asked(**fields: object) -> Experiment:
    return Experiment(**{"ncu": True, "load_format": "dummy", **fields})


GPUS = Topology.uniform(2, 80 << 30)


@pytest.mark.parametrize(
    ("fields", "device", "said"),
    [
        ({}, "cpu", "--ncu counts kernels of GPUs, and this runs on the CPU; leave --ncu out"),
        ({"nsys": True}, "cuda", "--ncu goes with neither --nsys nor --find-rate; give one"),
        (
            {"find_rate": True, "slo": {"ttft:p99": 100.0}, "num_prompts": 4},
            "cuda",
            "--ncu goes with neither --nsys nor --find-rate; give one",
        ),
        (
            {"engine": "transformers"},
            "cuda",
            "the engine transformers takes no step for Nsight Compute; leave --ncu out, or use "
            "--engine torch",
        ),
        (
            {},
            "cuda",
            "--ncu needs Nsight Compute: no `ncu` on the PATH of this machine; install it there, "
            "or leave --ncu out",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_when_it_is_planned(
    fields: dict[str, object], device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nothing")
    with pytest.raises(UserError) as refused:
        plan_experiment(asked(**fields), device, GPUS)  # type: ignore[arg-type]
    assert str(refused.value) == said


def test_a_plan_with_ncu_says_where_its_text_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(fake_ncu.install(tmp_path / "bin", "")))
    experiment = asked(result_dir=tmp_path)
    planned = plan_experiment(experiment, "cuda", GPUS)
    assert [one.plan.ncu_file for one in planned] == [None]
    (remark,) = remarks(experiment, planned, GPUS)
    assert f"will be in {tmp_path}/tiny-{identity_of(experiment)}/ncu" in remark


def test_counters_belong_to_the_results_of_the_same_runs() -> None:
    assert identity_of(Experiment()) == identity_of(Experiment(ncu=True))
