"""Training through Ray: from the command to a table, and again from where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.analysis.training.comparison import findings_of
from orchestrator.cli import main
from orchestrator.run import driver

pytestmark = pytest.mark.ray
ASKED = (
    *("submit", "--workload", "train", "--model", "tiny", "--device", "cpu", "--seq-len", "32"),
    *("--global-batch-size", "4", "--micro-batch-size", "2", "--steps", "3", "--num-warmups", "0"),
)


def test_layouts_train_alike_and_are_resumed(
    ray_cluster: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import contextlib

    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
    result_dir = ("--result-dir", str(tmp_path))
    first = CliRunner().invoke(main, [*ASKED, "--strategy", "tp1,dp2", *result_dir, "--json"])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(main, [*ASKED, "--strategy", "tp1,dp2,fsdp2", *result_dir])
    assert "2 of 3 runs have a result and are skipped." in again.output
    (folder,) = tmp_path.iterdir()
    cells = findings_of([folder]).comparison
    assert all(one.times.backward_ms for one in cells)  # each start was taken apart
    losses = [one.result.loss for one in cells]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "manifest.json").read_text())["experiment"]["workload"] == "train"
