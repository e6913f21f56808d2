"""What travels with a job: fields, files and plug-ins, under the name that results will have."""

from __future__ import annotations

import base64
import io
import sys
import tarfile
from pathlib import Path

import fake_engine
import pytest
import yaml

from orchestrator.commands import jobs
from orchestrator.config import load_experiment
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import parcel as parcels
from orchestrator.plan.parcel import CONFIG, parcel
from orchestrator.store.folders import folder_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "parcel"
    made.mkdir()
    return made


def test_the_experiment_is_the_same_there_with_its_files_beside_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, fabric = tmp_path / "far" / "prompts.jsonl", tmp_path / "fabric.arrow"
    dataset.parent.mkdir()
    dataset.write_text('{"prompt": "a", "output_len": 2}\n')
    fabric.write_bytes(b"measured")
    asked = Experiment(
        strategy=("tp2", "pp2"),
        dataset_path=dataset,
        fabric=fabric,
        num_starts=3,
        address="http://head:8265",
        result_dir=Path("mine"),
    )
    name = parcel(asked, folder)
    monkeypatch.chdir(folder)
    there = load_experiment(Path(CONFIG), {})
    assert (there.strategy, there.num_starts) == (("tp2", "pp2"), 3)
    assert (there.address, there.result_dir) == (None, None)
    assert there.dataset_path is not None
    assert there.dataset_path.read_text() == dataset.read_text()
    assert there.fabric is not None
    assert there.fabric.read_bytes() == b"measured"
    assert folder_of(there).name == name


def test_only_what_was_asked_is_written_down(folder: Path) -> None:
    parcel(Experiment(strategy=("tp4",), model="llama-70b", load_format="dummy"), folder)
    fields = yaml.safe_load((folder / CONFIG).read_text())
    assert fields == {"strategy": ["tp4"], "model": "llama-70b", "load_format": "dummy"}


def test_plug_ins_travel_with_the_notes_by_which_they_are_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(fake_engine.install(tmp_path))])
    parcel(Experiment(), folder)
    assert (folder / "fake_engine.py").exists()
    (points,) = folder.glob("fake_engine-1.dist-info/entry_points.txt")
    assert "fake = fake_engine:FakeEngine" in points.read_text()
    assert not list(folder.glob("shard_orchestrator*"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "checkpoints/mine"}, "the same absolute path on every node"),
        ({"dataset_path": Path("nowhere.jsonl")}, "nowhere.jsonl does not exist"),
        ({"workload": "train", "save_checkpoint": Path("mine")}, "would end with the job"),
    ],
)
def test_what_cannot_be_had_there_is_refused(
    fields: dict[str, str | Path], said: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=said):
        parcel(Experiment(**fields), folder)


def test_more_than_a_head_can_hold_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "large.jsonl"
    dataset.write_text("x" * 3000)
    monkeypatch.setattr(parcels, "MOST_BYTES", 2000)
    with pytest.raises(UserError, match="would travel with the job, more than"):
        parcel(Experiment(dataset_path=dataset), folder)


@pytest.mark.parametrize(
    ("result_dir", "root"),
    [
        (None, '"$HOME"/results'),
        ("my runs", "\"$HOME\"/'my runs'"),
        ("/data/r", "/data/r"),
        ("/a;b", "'/a;b'"),
    ],
)
def test_results_lie_in_the_home_of_the_clusters_user_or_where_it_is_said(
    result_dir: str | None, root: str
) -> None:
    assert jobs._root(Path(result_dir) if result_dir else None) == root


def test_results_that_came_as_text_are_unpacked_and_a_cut_one_is_said(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("tiny-1/summary.arrow")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    text = base64.encodebytes(packed.getvalue()).decode()
    whole = f"Running: echo {jobs.BEGIN}\n{jobs.BEGIN}\n{text}{jobs.END}\n"
    jobs._unpack(whole, tmp_path)
    assert (tmp_path / "tiny-1" / "summary.arrow").read_bytes() == b"abc"
    for cut in (whole[: len(whole) // 2], ""):
        with pytest.raises(UserError, match="is cut short"):
            jobs._unpack(cut, tmp_path / "other")
