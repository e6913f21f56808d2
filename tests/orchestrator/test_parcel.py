"""What travels with a job: fields, files and plug-ins, under the name that results will have."""

from __future__ import annotations

import base64
import io
import os
import sys
import tarfile
from pathlib import Path

import fake_engine
import pytest
import yaml

from orchestrator.cluster.jobs import OURS, SUBMIT, Job
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


def test_a_folder_travels_without_hidden_files_and_counts_by_what_is_in_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "prompts"
    dataset.mkdir()
    (dataset / "train.jsonl").write_text('{"prompt": "a", "output_len": 2}\n')
    (dataset / ".gitignore").write_text("/train.jsonl\n")
    (dataset / ".env").write_text("HF_TOKEN=secret\n")
    monkeypatch.chdir(dataset)
    name = parcel(Experiment(dataset_path=Path()), folder)
    assert [file.name for file in (folder / "dataset" / "prompts").iterdir()] == ["train.jsonl"]
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))  # an archive does not keep the times
    monkeypatch.chdir(folder)
    assert folder_of(load_experiment(Path(CONFIG), {})).name == name


def test_more_than_a_head_can_hold_is_refused_before_it_is_copied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "large.jsonl"
    dataset.write_text("x" * 3000)
    monkeypatch.setattr(parcels, "MOST_BYTES", 2000)
    with pytest.raises(UserError, match="may travel with a job"):
        parcel(Experiment(dataset_path=dataset), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("result_dir", "root"),
    [
        (None, '"$HOME"/results/tiny-1'),
        ("my runs", "\"$HOME\"/'my runs/tiny-1'"),
        ("/data/r", "/data/r/tiny-1"),
        ("/a;b", "'/a;b/tiny-1'"),
    ],
)
def test_results_lie_in_the_home_of_the_clusters_user_or_where_it_is_said(
    result_dir: str | None, root: str
) -> None:
    assert jobs._root(Path(result_dir) if result_dir else None, "tiny-1") == root


def test_results_that_came_as_text_are_unpacked_and_a_cut_one_is_said(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("tiny-1/summary.arrow")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    text = base64.encodebytes(packed.getvalue()).decode()
    whole = f"Running: echo {jobs.BEGIN}\n{jobs.BEGIN}\n{text}{jobs.END}\n"
    jobs._unpack(whole, tmp_path, "tiny-1")
    assert (tmp_path / "tiny-1" / "summary.arrow").read_bytes() == b"abc"
    for cut in (whole[: len(whole) // 2], ""):
        with pytest.raises(UserError, match="is cut short"):
            jobs._unpack(cut, tmp_path / "other", "tiny-1")
        assert list((tmp_path / "other").iterdir()) == []
    with pytest.raises(UserError, match="is cut short"):
        jobs._unpack(whole, tmp_path, "another")
    assert [file.name for file in tmp_path.iterdir() if file.name != "other"] == ["tiny-1"]


class _Cluster:
    """Stands in for `Jobs`: what it was asked to start."""

    address = "http://head:8265"

    def __init__(self, *live: Job) -> None:
        self.started: list[tuple[str, str]] = []
        self.live = list(live)

    def attempts(self, experiment: str) -> list[Job]:
        return [job for job in self.live if job.experiment == experiment and job.does == SUBMIT]

    def submit(self, job_id: str, entrypoint: str, metadata: dict[str, str], folder: Path) -> Job:
        self.started.append((job_id, entrypoint))
        named = {name: metadata[name] for name in ("experiment", "model", "layouts", "results")}
        job = Job(
            id=job_id,
            does=metadata[OURS],
            asked=metadata["asked"],
            status="RUNNING",
            entrypoint=entrypoint,
            started_at=None,
            ended_at=None,
            exit_code=None,
            message="",
            **named,
        )
        self.live.append(job)
        return job


def test_only_a_job_that_does_the_same_is_attached_to(monkeypatch: pytest.MonkeyPatch) -> None:
    there = _Cluster()
    monkeypatch.setattr(jobs, "connect", lambda address: there)

    def submit(*layouts: str, flags: tuple[str, ...] = ()) -> int:
        return jobs.submit(Experiment(strategy=layouts), there.address, flags, wait=False)

    submit("tp1", flags=("--dry-run",))
    submit("tp1")
    submit("tp1")
    assert len(there.started) == 2
    (dry, _), (job, entrypoint) = there.started
    assert "-dry-run-" in dry
    assert job.endswith("-1")
    assert entrypoint.startswith("orchestrator submit --config experiment.yaml --result-dir")
    with pytest.raises(UserError, match=f"{job} writes to the same results .*layouts tp1"):
        submit("tp2")
    with pytest.raises(UserError, match="was asked for something else"):
        submit("tp1", flags=("--trace",))


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 1)]
)
def test_a_job_that_did_not_end_well_says_so(
    status: str, code: int | None, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    there = _Cluster()
    job = Job(
        "tiny-1", SUBMIT, "tiny", "tiny", "tp1", "r", "a", status, "", None, None, code, "why"
    )
    assert jobs._outcome(there, job) == expected  # type: ignore[arg-type]
    assert f"Job tiny-1 {status.lower()}: why" in capsys.readouterr().err
