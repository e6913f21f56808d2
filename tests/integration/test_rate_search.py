"""The search of a rate from the command line, on a Ray cluster, with the model and engine that are
really run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.analysis.load import load
from orchestrator.cli import main
from orchestrator.run import driver


def test_a_search_leaves_a_closed_loop_and_a_run_at_each_rate(
    ray_cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
    work = "--input-len 4 --output-len 3 --max-concurrency 2 --num-prompts 4 --num-warmups 0"
    asked = f"--device cpu --strategy tp1 {work} --slo ttft:p99:60000 --find-rate --rate-runs 2"
    command = ["submit", *asked.split(), "--result-dir", str(tmp_path), "--json"]
    first = CliRunner().invoke(main, command)
    again = CliRunner().invoke(main, [*command, "--save-spans", "--save-detailed"])
    assert first.exit_code == 0, first.output
    (found,) = json.loads(first.stdout)["rates"]
    assert found["tried_rates"] == [found["rate"]] == [found["closed_rate"]]
    runs = [run for one in load([Path(json.loads(first.stdout)["results"])]) for run in one.runs]
    rates = {run.arrivals.request_rate: run.slo.slo_met for run in runs}
    assert rates == {None: True, found["rate"]: True}
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert "skipped" in again.stderr
    assert "--save-detailed and --save-spans would add to new runs alone" in again.stderr
    assert "new runs alone" not in first.stderr
    assert 'id="rates"' in Path(json.loads(first.stdout)["report"]).read_text()
