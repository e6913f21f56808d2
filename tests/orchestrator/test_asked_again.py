"""The same results asked for again: only what is asked is shown, and all of it can be made anew."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stores import CELL
from summaries import write_run

from orchestrator.commands import submitting
from orchestrator.commands.submitting import Flags
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Experiment, Run
from orchestrator.report.output import Output
from orchestrator.store import folders
from orchestrator.store.catalog import list_runs
from orchestrator.store.folders import REPLACED, set_aside
from orchestrator.store.lock import locked
from orchestrator.store.store import Store

OTHER = Cell(Deployment("tiny", "pp4", "torch", "float32"), CELL.scenario, CELL.max_concurrency)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two cells with a run each."""
    store = Store(tmp_path / "tiny-1")
    store.create()
    store.update_manifest(cells=[CELL.name, OTHER.name], started_at="2026-01-31T12:00:00+00:00")
    for cell, rate in ((CELL, 10.0), (OTHER, 20.0)):
        write_run(store, Run(cell, 0, 0), output_throughput=rate, input_len=256, output_len=128)
    return store


def shown(store: Store, flags: Flags, out: Output, capsys: pytest.CaptureFixture[str]) -> str:
    asked: Any = SimpleNamespace(deployments=[SimpleNamespace(cells=[SimpleNamespace(cell=CELL)])])
    submitting.show_run(store.folder, Experiment(), asked, flags, out)
    return capsys.readouterr().out


def test_a_command_shows_the_cells_that_it_asked_for_and_says_that_there_are_others(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(store, Flags(), Output(), capsys)
    assert " tp4 " in text
    assert " pp4 " not in text
    assert "1 cell of an earlier command is not shown; --all does." in text
    assert "was asked for and has no run" not in text
    every = shown(store, Flags(show_all=True), Output(), capsys)
    assert " pp4 " in every
    assert "not shown; --all" not in every


def test_of_cpus_nothing_is_ranked(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(store, Flags(show_all=True), Output(), capsys)
    assert "no ranking" in " ".join(text.split())
    assert "against" not in text.split("tok/s:")[0]
    (heading,) = [line for line in text.splitlines() if line.startswith(" layout")]
    assert not {"best", "GPUs", "/GPU"} & set(heading.split())


def test_a_document_too_has_the_cells_that_were_asked_for(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(shown(store, Flags(), Output(as_json=True), capsys))
    assert [row["strategy"] for row in found["comparison"]] == ["tp4"]


def test_results_that_are_made_anew_are_kept_with_a_number_and_found_by_nobody(
    store: Store, tmp_path: Path
) -> None:
    first = set_aside(store.folder)
    assert first == tmp_path / REPLACED / "tiny-1-1"
    assert set_aside(store.folder) is None
    store.create()
    write_run(store, Run(CELL, 0, 0), output_throughput=30.0)
    assert set_aside(store.folder) == tmp_path / REPLACED / "tiny-1-2"
    assert len(list_runs([tmp_path / REPLACED])) == 2
    with pytest.raises(UserError, match="there are no results"):
        folders.find(tmp_path)


def test_results_that_a_driver_adds_to_stay_where_they_are(store: Store) -> None:
    with locked(store.folder), pytest.raises(UserError, match="is writing here"):
        set_aside(store.folder)
    assert store.folder.exists()


def test_several_folders_are_listed_once_each(store: Store, tmp_path: Path) -> None:
    assert len(list_runs([tmp_path, store.folder])) == 1
    with pytest.raises(UserError, match="there is no folder"):
        list_runs([tmp_path, tmp_path / "typo"])


def test_force_means_nothing_to_a_search(tmp_path: Path) -> None:
    limits = {"slo": ("ttft:p99:2000",), "num_prompts": 8}
    asked = Experiment(find_rate=True, result_dir=tmp_path, **limits)
    with pytest.raises(UserError, match="--force is of a fixed load"):
        submitting.submit(asked, Flags(force=True), Output())


def test_force_moves_nothing_in_an_object_store(tmp_path: Path) -> None:
    asked = Experiment.model_validate({"result_dir": "s3://bucket/results"})
    with pytest.raises(UserError, match="--force moves a folder of this machine"):
        submitting.submit(asked, Flags(force=True), Output())


def test_the_flags_of_a_job_are_those_that_its_driver_knows() -> None:
    given = Flags(dry_run=True, no_wait=True, trace=True, force=True, show_all=True)
    assert given.of_the_job == ("--dry-run", "--trace", "--force", "--all")
