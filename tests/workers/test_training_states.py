"""A run that was stopped goes on as if it had not been, under the layout that it had or another."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Pool
from training_runs import LOAD, Curve, alone, check_same, curve, load_of, shape_of, training_plan

from strategies.errors import Refused
from workers.engines import training_state
from workers.engines.training import trainer
from workers.engines.training.engine import TIMED, TorchTrainer
from workers.engines.training.observing import KEPT, STARTING
from workers.engines.training.saving import write
from workers.engines.training.scaling import Scaling
from workers.engines.training.states import StateWriter
from workers.engines.training.trainer import Trainer
from workers.engines.training_state import TrainingState
from workers.messages import EnginePlan, TrainingWork
from workers.rank import RankContext

pytestmark = pytest.mark.slow
STOP, LAST = 3, 6


def run(pool: Pool, layout: str, work: TrainingWork, family: str = "Llama") -> Curve:
    """A run under a layout; "deepspeed:dp2" names its engine."""
    engine, _, name = layout.rpartition(":")
    plan = training_plan(name, shape_of(family), None, load_of(name))
    return curve(pool.serve(plan, work, engine=engine or "torch", counts=False)[0])


@pytest.fixture(scope="module")
def written(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """(layout, family) -> the state after STOP steps under it."""
    found: dict[tuple[str, str], str] = {}

    def state(layout: str, family: str = "Llama") -> str:
        if (layout, family) not in found:
            folder = tmp_path_factory.mktemp("states")
            run(pool, layout, TrainingWork(STOP, state=str(folder), interval=STOP), family)
            found[layout, family] = str(training_state.given(folder))
        return found[layout, family]

    return state


@pytest.mark.parametrize(
    ("before", "after", "family"),
    [
        ("tp2pp2", "fsdp2", "Mistral"),  # whose embedding is tied, and its vocabulary uneven
        ("fsdp2", "tp2pp2", "Llama"),
        ("dp2", "tp2fsdp2", "Llama"),
        ("tp2fsdp2", "pp2fsdp2", "Llama"),
        ("deepspeed:dp2zero1", "tp2dp2", "Llama"),
        ("tp2fsdp2", "deepspeed:dp2zero2", "Llama"),
        ("fsdp2", "deepspeed:dp2zero3", "Llama"),
        ("deepspeed:dp2zero3", "dp2", "Mistral"),
        ("deepspeed:dp2", "deepspeed:dp2zero1", "Llama"),
        ("dp2", "deepspeed:dp2", "Llama"),
    ],
)
def test_a_state_of_one_layout_goes_on_under_another_with_the_same_losses(
    before: str, after: str, family: str, written: Callable[..., str], pool: Pool
) -> None:
    if "deepspeed" in before + after:
        pytest.importorskip("deepspeed")
    found = run(pool, after, TrainingWork(LAST, resume=written(before, family)), family)
    assert [one.step for one in found] == [3, 4, 5]
    assert [one.resumed for one in found] == [True, False, False]
    check_same(found, alone(family)[STOP:])


# -- a run that is stopped


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """(step) -> the next run ends before it."""

    def before(step: int) -> None:
        taken, whole = [0], Trainer.step

        def limited(mine: Trainer, *args: torch.Tensor) -> object:
            if taken[0] == step:
                monkeypatch.setattr(Trainer, "step", whole)
                raise Killed
            taken[0] += 1
            return whole(mine, *args)

        monkeypatch.setattr(Trainer, "step", limited)

    return before


@pytest.fixture
def plan() -> EnginePlan:
    return training_plan("tp1", shape_of("Llama"), None)


def alone_here(plan: EnginePlan, *works: TrainingWork) -> list[Curve]:
    """The runs of one start in this process."""
    engine = TorchTrainer()
    engine.build(RankContext(0, plan.placement, torch.device("cpu")), plan)
    engine._traffic = []  # counted by other tests
    return [curve([engine.run(work)]) for work in works]


@pytest.mark.parametrize("with_data", [False, True])
def test_a_run_that_was_killed_goes_on_with_the_data_that_come_next(
    with_data: bool, plan: EnginePlan, stops: Callable[[int], None], tmp_path: Path
) -> None:
    tokens = np.random.default_rng(1).integers(128, size=(20, 17), dtype=np.int32)
    plain = TrainingWork(LAST, tokens if with_data else None)
    work = replace(plain, state=str(tmp_path), interval=2)
    stops(5)
    with pytest.raises(Killed):
        alone_here(plan, work)
    assert [one.name for one in training_state.whole(tmp_path)] == ["step-00000004"]
    found, whole = alone_here(plan, work)[0], alone_here(plan, plain)[0]
    check_same(found, whole, 0.0)
    assert len(found) == LAST
    assert [one.resumed for one in found] == [False] * 4 + [True, False]
    times = [one.end_s for one in found]
    assert times == sorted(times)


def test_a_state_that_was_not_written_to_its_end_is_never_read(
    plan: EnginePlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = TrainingWork(LAST, state=str(tmp_path), interval=2)
    renamed = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == training_state.name_of(4):
            raise Killed
        renamed(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        alone_here(plan, work)
    monkeypatch.setattr(os, "replace", renamed)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".step-00000004.tmp", "step-00000002"]
    (found,) = alone_here(plan, work)
    check_same(found, alone("Llama"))
    assert [one.resumed for one in found].index(True) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["step-00000006"]


def test_a_run_whose_last_state_is_its_end_takes_no_step(plan: EnginePlan, tmp_path: Path) -> None:
    work = TrainingWork(STOP, state=str(tmp_path), interval=2)
    first, again = alone_here(plan, work, work)
    assert again == first


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("left", [None, 0.0, 0.5, 1.0])
def test_a_state_of_which_a_part_is_gone_or_spoiled_is_refused(
    name: str, left: float | None, plan: EnginePlan, tmp_path: Path
) -> None:
    """What is gone or cut is refused where the command reads it, before anything is taken."""
    alone_here(plan, TrainingWork(STOP, state=str(tmp_path), interval=STOP))
    folder = training_state.given(tmp_path)
    size = (folder / name).stat().st_size
    (folder / name).unlink()
    if left is not None:
        (folder / name).write_bytes(b"\xff" * int(left * size))
    if left != 1.0:
        why = rf"{folder} is not whole, so .*: {name}(: No such file|.* bytes of {size};)"
        with pytest.raises(Refused, match=why):
            training_state.read(folder)
    for work in (
        TrainingWork(LAST, state=str(tmp_path), interval=STOP),
        TrainingWork(LAST, resume=str(folder)),
    ):
        with pytest.raises(Refused, match=rf"{folder} is not whole, so .*\S; go on from another"):
            alone_here(plan, work)


# -- a state that cannot be written


@pytest.mark.parametrize("failing", [{4}, {LAST}, {2, 4, LAST}])
def test_a_run_goes_on_where_a_state_cannot_be_written(
    failing: set[int], plan: EnginePlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has all its steps and says what is not written; the state before stays, and the next is
    tried."""
    folder, renamed = tmp_path / "states" / "run", os.replace
    work = TrainingWork(LAST, state=str(folder), interval=2)

    def full(source: Path, target: Path) -> None:
        if training_state.step_of(Path(target)) in failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        renamed(source, target)

    monkeypatch.setattr(os, "replace", full)
    engine = TorchTrainer()
    engine.build(RankContext(0, plan.placement, torch.device("cpu")), plan)
    engine._traffic = []  # counted by other tests
    report = engine.run(work)
    check_same(curve([report]), alone("Llama"))
    assert len(curve([report])) == LAST
    assert report.training is not None
    said = f"{len(failing)} of 3 states could not be written, the last of them after step "
    assert report.training.states_reason == (
        f"{said}{max(failing)}: [Errno 28] No space left on device"
    )
    whole = sorted({2, 4, LAST} - failing)[-1:]
    assert [one.name for one in folder.glob("*")] == [training_state.name_of(n) for n in whole]
    assert folder.parent.exists() == bool(whole)  # no empty folder is left


def test_a_full_disk_is_named_and_not_where_torch_met_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        error = RuntimeError("unexpected pos 704 vs 598")
        error.__context__ = OSError(errno.ENOSPC, "No space left on device")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Refused, match=r"rank 0 cannot write its part: \[Errno 28\] No space left"):
        write({"one": torch.ones(2)}, StateWriter(tmp_path), several=False)


@pytest.mark.parametrize("layout", ["fsdp2", "deepspeed:dp2zero2"])
def test_no_rank_waits_for_one_that_cannot_write(layout: str, pool: Pool, tmp_path: Path) -> None:
    """A file is in the way of the folder, which rank 0 makes."""
    if "deepspeed" in layout:
        pytest.importorskip("deepspeed")
    (tmp_path / "file").touch()
    engine, _, name = layout.rpartition(":")
    plan = training_plan(name, shape_of("Llama"), None, load_of(name))
    work = TrainingWork(STOP, state=str(tmp_path / "file" / "run"), interval=2)
    (reports,) = pool.serve(plan, work, engine=engine or "torch", counts=False)
    check_same(curve(reports), alone("Llama"))
    said = [one.training.states_reason for one in reports if one.training]
    assert said[0] is not None
    assert said[0].startswith("2 of 2 states could not be written, the last of them after step 3: ")
    assert "Not a directory" in said[0]
    assert all(said)


# -- steps that are taken apart


def test_steps_that_are_taken_apart_are_none_of_the_run_and_leave_its_state(
    plan: EnginePlan, tmp_path: Path
) -> None:
    work = TrainingWork(STOP, state=str(tmp_path), interval=STOP)
    engine = TorchTrainer()
    engine.build(RankContext(0, plan.placement, torch.device("cpu")), plan)
    engine._traffic = []  # counted by other tests
    first = curve([engine.run(work)])
    (state,) = training_state.whole(tmp_path)
    before = (state / training_state.FILE).read_bytes()
    seen = engine.run(replace(work, steps=LAST, observe=True)).training
    assert seen is not None
    assert seen.parts is not None
    assert seen.parts.num_rows == 1
    assert seen.steps is not None
    assert seen.steps.num_rows == 0
    assert training_state.whole(tmp_path) == [state]
    assert (state / training_state.FILE).read_bytes() == before
    found = curve([engine.run(replace(work, steps=LAST))])
    assert found[:STOP] == first
    assert [one.resumed for one in found] == [False] * STOP + [True, False, False]
    check_same(found, alone("Llama"))


def test_in_fp16_steps_are_taken_apart_after_those_that_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step that overflows updates nothing."""
    load = replace(LOAD, precision="fp16")
    plan = training_plan("tp1", shape_of("Llama"), None, load, dtype="float16")
    engine, updates = TorchTrainer(), list[int]()
    monkeypatch.setattr(trainer, "Scaling", partial(Scaling, 2.0**24))
    engine.build(RankContext(0, plan.placement, torch.device("cpu")), plan)
    engine._traffic = []  # counted by other tests
    whole = Trainer.step

    def counted(mine: Trainer, *args: torch.Tensor) -> object:
        result = whole(mine, *args)
        updates.append(mine.updates)
        return result

    monkeypatch.setattr(Trainer, "step", counted)
    engine.run(TrainingWork(STOP, observe=True))
    before = updates[: -TIMED - STARTING - KEPT["cpu"]]
    assert before == [0] * (len(before) - 1) + [1]
    assert len(before) > 1, "the first scale is not too large"


def test_a_state_that_has_no_sizes_of_its_files_is_gone_on_from(
    plan: EnginePlan, tmp_path: Path
) -> None:
    """As those have none that were written before sizes were kept."""
    folder = tmp_path / training_state.name_of(STOP)
    folder.mkdir()
    state = replace(TrainingState.of(plan, None), step=STOP)
    training_state.write(state, folder)
    kept = json.loads((folder / training_state.FILE).read_text())
    del kept["files"]
    (folder / training_state.FILE).write_text(json.dumps(kept))
    assert training_state.read(folder) == state


# -- what does not belong together


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 1}, "written with --seed 1, and 0 is asked for"),
        ({"data": "abc"}, "other data; give the same --data"),
        ({"global_batch_size": 4}, "written with --global-batch-size 4, and 8 is"),
        ({"parameters": (("model.norm.weight", (7,)),)}, r"it has \(7,\) of model.norm.weight"),
    ],
)
def test_a_state_of_another_run_is_not_gone_on_from(
    change: dict[str, object], why: str, plan: EnginePlan, tmp_path: Path
) -> None:
    folder = tmp_path / training_state.name_of(2)
    folder.mkdir()
    other: TrainingState = replace(TrainingState.of(plan, None), step=2, **change)
    training_state.write(other, folder)
    with pytest.raises(Refused, match=why):
        alone_here(plan, TrainingWork(LAST, resume=str(folder)))


def test_a_folder_without_a_state_is_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there is no training state in"):
        training_state.given(tmp_path)
    (tmp_path / training_state.FILE).write_text("{")
    with pytest.raises(Refused, match="is no training state"):
        training_state.read(training_state.given(tmp_path))
