"""A checkpoint is written once the runs are kept: where it cannot be, they stay, and the same
command again trains for the checkpoint alone. So it does for the last state of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_group import FakeGroup, installed
from recorder import Recorder
from tables import make
from training_inputs import PARTS
from training_runs import step_row

from orchestrator.analysis.training.rows import TRAINED
from orchestrator.cluster.failures import RunFailed
from orchestrator.errors import ClusterLost
from orchestrator.experiment import Experiment
from orchestrator.plan import planning
from orchestrator.run import driver
from orchestrator.run.jobs import all_completed
from orchestrator.store.store import Store
from strategies import Topology
from workers.checkpoint_files import UNFINISHED
from workers.engines.training_state import name_of
from workers.messages import Built, RankReport, TrainingWork
from workers.records import STEPS
from workers.training_records import (
    TRAINING_COLLECTIVES,
    TRAINING_PARTS,
    TRAINING_STEPS,
    TrainingReport,
)

TRAIN: dict[str, Any] = {
    "workload": "train",
    "model": "tiny",
    "device": "cpu",
    "strategy": "tp1",
    "steps": 2,
    "seq_len": 8,
    "global_batch_size": 1,
    "micro_batch_size": 1,
    "num_warmups": 0,
}


@dataclass
class Trainers:
    """Stands in for the ranks of every group. did: what they were asked for, in order. fails: of a
    checkpoint, raised instead of writing it. lacks: why states cannot be written."""

    did: list[str] = field(default_factory=list)
    fails: Exception | None = None
    lacks: str | None = None

    def build(self, group: FakeGroup, timeout_s: float) -> list[Built]:
        return [Built(0, 0.1, None, 1, None, "cpu")]

    def run(self, group: FakeGroup, work: TrainingWork, timeout_s: float) -> list[RankReport]:
        self.did.append("write" if work.write else "observe" if work.observe else "train")
        if work.write:
            assert work.save is not None
            if self.fails is not None:
                Path(work.save, UNFINISHED).mkdir(parents=True)
                raise self.fails
            Path(work.save).mkdir(parents=True, exist_ok=True)
            Path(work.save, "config.json").write_text("{}")
        if work.state is not None and not work.observe and self.lacks is None:
            Path(work.state, name_of(work.steps)).mkdir(parents=True, exist_ok=True)
        steps = [step_row(i, 5.0 - i, 1.0, end_s=1.0 + i) for i in range(work.steps)]
        parts = make(TRAINING_PARTS, [{**PARTS, "rank": 0, "stages": [0]}])
        mine = TrainingReport(
            TRAINING_STEPS.make(steps),
            TRAINING_COLLECTIVES.make(()),
            weight_bytes=1,
            gradient_bytes=None,
            optimizer_bytes=1,
            states_reason=self.lacks,
            parts=parts,
        )
        return [RankReport(0, None, STEPS.make(()), None, 1, training=mine)]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Trainers:
    made = Trainers()
    installed(monkeypatch)
    monkeypatch.setattr(FakeGroup, "build", lambda *asked: made.build(*asked))
    monkeypatch.setattr(FakeGroup, "run", lambda *asked: made.run(*asked))
    return made


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., tuple[Recorder, bool]]:
    """Gives the command; what it told, and whether all is there that was asked for."""

    def given(**fields: Any) -> tuple[Recorder, bool]:
        asked = Experiment(**TRAIN, result_dir=tmp_path / "results", **fields)
        planned = planning.plan_experiment(asked, "cpu", Topology.uniform(1))
        seen = Recorder()
        folder = driver.run_experiment(planned, asked, seen)
        return seen, all_completed(planned, asked, folder)

    return given


def rows(tmp_path: Path) -> list[str]:
    """What became of each run that is kept."""
    (folder,) = tmp_path.glob("results/*")
    return [one.status for one in Store(folder).outcomes()]


def test_a_run_is_kept_whose_checkpoint_cannot_be_written(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    ranks.fails = RunFailed("rank 0 cannot write its part: No space left on device")
    asked = {"save_checkpoint": tmp_path / "saved", "num_runs": 2}
    seen, is_all = submit(**asked)
    assert not is_all
    assert rows(tmp_path) == ["completed"] * 2
    assert ranks.did == ["train", "train", "write", "observe"]
    (line,) = [one for one in seen.notes if "checkpoint" in one]
    assert "its runs are kept, but no checkpoint was written to" in line
    assert "No space left on device; once it can be, or with another --save-checkpoint" in line
    assert "\n" not in line
    assert not (tmp_path / "saved").exists()  # nor what a worker had written

    ranks.did, ranks.fails = [], None
    seen, is_all = submit(**asked)
    assert is_all
    assert ranks.did == ["train", "write"]  # and no row is written again
    assert rows(tmp_path) == ["completed"] * 2
    assert "trains once more, for its checkpoint" in " ".join(seen.notes)
    assert seen.notes[-1].endswith(f"its checkpoint is {tmp_path / 'saved/tiny.tp1.torch.float32'}")
    assert submit(**asked)[1]
    assert ranks.did == ["train", "write"]


def test_what_is_measured_is_trained_again_where_a_checkpoint_is_asked_for_later(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    assert submit()[1]
    assert submit()[1]
    assert ranks.did == ["train", "observe"]
    assert submit(save_checkpoint=tmp_path / "saved")[1]
    assert ranks.did[2:] == ["train", "write"]
    assert list(tmp_path.glob("saved/*/config.json"))


def test_a_checkpoint_of_other_results_is_none_of_these(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    assert submit(save_checkpoint=tmp_path / "saved")[1]
    ranks.fails = RunFailed("the worker of rank 0 died")
    assert not submit(save_checkpoint=tmp_path / "saved", seed=1)[1]
    assert submit(save_checkpoint=tmp_path / "saved")[1]
    assert not submit(save_checkpoint=tmp_path / "saved", seed=1)[1]


def test_one_checkpoint_is_written_of_several_starts(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    assert submit(save_checkpoint=tmp_path / "saved", num_starts=2)[1]
    assert ranks.did == ["train", "write", "observe", "train", "observe"]


def test_a_run_is_kept_where_ray_dies_before_its_checkpoint_is_written(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    ranks.fails = ClusterLost("the GCS has died")
    assert not submit(save_checkpoint=tmp_path / "saved")[1]
    assert rows(tmp_path) == ["completed"]
    assert ranks.did == ["train", "write", "train", "write"]  # a local Ray is started once more


# -- the last state of a run

FULL = "1 of 1 states could not be written, the last of them after step 2: No space left on device"


def test_a_run_is_kept_whose_last_state_cannot_be_written(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    ranks.lacks = FULL
    asked = {"checkpoint_interval": 2, "num_runs": 2}
    seen, is_all = submit(**asked)
    assert not is_all
    assert rows(tmp_path) == ["completed"] * 2
    assert ranks.did == ["train", "train", "observe"]
    said = [one for one in seen.notes if FULL in one]
    assert len(said) == 2
    assert all("the run is kept, but 1 of 1 states" in line for line in said)
    (folder,) = tmp_path.glob("results/*")
    found = Store(folder).read("training")
    assert found is not None
    kept = TRAINED.rows(found)
    assert [one.startup.states_reason for one in kept] == [FULL] * 2

    ranks.did = []
    seen, is_all = submit(**asked)
    assert not is_all
    assert ranks.did == ["train"] * 2  # tried once more, and no row is written again
    assert sum(FULL in one for one in seen.notes) == 2

    ranks.did, ranks.lacks = [], None
    seen, is_all = submit(**asked)
    assert is_all
    assert ranks.did == ["train"] * 2
    assert rows(tmp_path) == ["completed"] * 2
    assert "it trains once more, for a last state" in " ".join(seen.notes)
    assert submit(**asked)[1]
    assert ranks.did == ["train"] * 2


def test_states_that_were_written_and_then_removed_are_not_written_again(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]], tmp_path: Path
) -> None:
    assert submit(checkpoint_interval=1)[1]
    for state in tmp_path.glob("results/*/states/*/*"):
        state.rmdir()
    assert submit(checkpoint_interval=1)[1]
    assert ranks.did == ["train", "observe"]


def test_a_run_without_its_last_state_has_what_is_asked_for_where_none_is(
    ranks: Trainers, submit: Callable[..., tuple[Recorder, bool]]
) -> None:
    ranks.lacks = FULL
    assert not submit(checkpoint_interval=2)[1]
    assert submit()[1]


def test_a_worker_that_dies_while_it_trains_for_a_last_state_costs_no_run(
    ranks: Trainers,
    submit: Callable[..., tuple[Recorder, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks.lacks = FULL
    assert not submit(checkpoint_interval=2)[1]

    def dies(*asked: Any) -> list[RankReport]:
        raise RunFailed("the worker of rank 0 died")

    monkeypatch.setattr(FakeGroup, "run", dies)
    seen, is_all = submit(checkpoint_interval=2)
    assert not is_all
    assert "the run is kept, but the worker of rank 0 died" in " ".join(seen.notes)
    assert rows(tmp_path) == ["completed"]
