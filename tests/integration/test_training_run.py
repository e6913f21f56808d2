"""Training through Ray: from the command to a table, and again from where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.analysis.training.comparison import findings_of
from orchestrator.cli import main
from orchestrator.cluster.group import WorkerGroup
from orchestrator.run import driver
from orchestrator.store.store import Store
from workers.engines.training_state import step_of
from workers.messages import RankReport, TrainingWork

pytestmark = pytest.mark.ray
MANY, OFTEN = 30, 10  # steps of a run that is killed, and how often it keeps its state
ASKED = (
    *("submit", "--workload", "train", "--model", "tiny", "--device", "cpu", "--seq-len", "32"),
    *("--global-batch-size", "4", "--micro-batch-size", "2", "--steps", "3", "--num-warmups", "0"),
)


def test_layouts_train_alike_and_are_resumed(
    ray_cluster: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
    saved = tmp_path / "saved"
    asked = [*ASKED, "--result-dir", str(tmp_path / "to"), "--save-checkpoint", str(saved)]
    asked += ["--strategy", "tp1,fsdp2"]
    with monkeypatch.context() as patched:
        patched.setattr(WorkerGroup, "run", vanishing(WorkerGroup.run, saved))
        first = CliRunner().invoke(main, asked)
    assert first.exit_code == 1, first.output
    said = " ".join(first.output.split())
    assert "its runs are kept, but no checkpoint was written" in said
    assert "rank 0 cannot write its part: [Errno 20] Not a directory" in said
    assert "rank 0: rank 0" not in said
    assert len(list(saved.glob("*fsdp2*/model*.safetensors"))) == 1
    again = CliRunner().invoke(main, asked[:-4] + asked[-2:])
    assert again.exit_code == 0, again.output
    assert "2 of 2 runs have a result and are skipped." in again.output
    (folder,) = (tmp_path / "to").iterdir()
    cells = findings_of([folder]).comparison
    assert all(one.times.backward_ms for one in cells)  # each start was taken apart
    losses = [one.result.loss for one in cells]
    assert losses == pytest.approx([losses[0]] * 2, abs=1e-4)
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "manifest.json").read_text())["experiment"]["workload"] == "train"


@pytest.mark.timeout(900)
def test_a_run_whose_worker_is_killed_goes_on_from_its_last_state_and_the_sweep_goes_on(
    ray_cluster: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
    layouts = ("--strategy", "dp2,tp1", "--checkpoint-interval", str(OFTEN), "--steps", str(MANY))
    asked = [*ASKED, *layouts, "--result-dir", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setattr(WorkerGroup, "run", killing(WorkerGroup.run, tmp_path))
        first = CliRunner().invoke(main, asked)
    (folder,) = tmp_path.iterdir()
    ended = {
        one.cell.strategy: one.reason or one.status for one in findings_of([folder]).comparison
    }
    assert ended.get("tp1") == "completed", (ended, first.output, first.exception)
    assert ended["dp2"].startswith("the worker of rank 1 died"), first.output
    (kept,) = folder.glob("states/tiny.dp2*/step-*")
    again = CliRunner().invoke(main, asked)
    assert again.exit_code == 0, again.output
    steps = Store(folder).read("training_steps")
    assert steps is not None
    for layout, resumed in (("tp1", []), ("dp2", [step_of(kept)])):
        rows = [one for one in steps.to_pylist() if one["strategy"] == layout]
        assert [one["step"] for one in rows] == list(range(MANY))
        assert [one["step"] for one in rows if one["resumed"]] == resumed
    losses = {one.cell.strategy: one.result.loss for one in findings_of([folder]).comparison}
    assert losses["dp2"] == pytest.approx(losses["tp1"], abs=1e-4)


def vanishing(run: Callable[..., list[RankReport]], path: Path) -> Callable[..., list[RankReport]]:
    """`WorkerGroup.run`; while one rank alone writes a checkpoint, a file is in place of its
    folder."""

    def struck(group: WorkerGroup, work: TrainingWork, timeout_s: float) -> list[RankReport]:
        if not work.write or len(group._places) > 1:
            return run(group, work, timeout_s)
        shutil.rmtree(path, ignore_errors=True)  # nothing makes it before it is written
        path.touch()
        try:
            return run(group, work, timeout_s)
        finally:
            path.unlink()

    return struck


def killing(run: Callable[..., list[RankReport]], folder: Path) -> Callable[..., list[RankReport]]:
    """`WorkerGroup.run`, in which rank 1 is killed once there is a state."""

    def strike(group: WorkerGroup, ended: threading.Event) -> None:
        while not ended.wait(0.01):
            if list(folder.glob("*/states/tiny.dp2*/step-*")):
                os.kill(group._places[1].pid, signal.SIGKILL)
                return

    def struck(group: WorkerGroup, work: TrainingWork, timeout_s: float) -> list[RankReport]:
        ended = threading.Event()
        if len(group._places) > 1:
            threading.Thread(target=strike, args=(group, ended), daemon=True).start()
        try:
            return run(group, work, timeout_s)
        finally:
            ended.set()

    return struck
