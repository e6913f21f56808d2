"""Nsight Systems around the workers, with a script in the place of `nsys`, and the ranges that it
is told of."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import fake_nsys
import pytest
import torch
from existing_cluster import SMALL
from ranks import engine_plan, ragged_requests, read_shape
from variables import without_ray

from orchestrator.cluster import nsight
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.nodes import Node, ask_nodes
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan.planning import choose_device, plan_experiment
from orchestrator.plan.remarks import remarks
from orchestrator.store.identity import identity_of
from strategies.shapes import Topology
from workers.engines.native.engine import TorchEngine, is_observable
from workers.messages import Work
from workers.progress import NoRanges, PushedRanges, ranges_for
from workers.rank import RankContext
from workers.versions import PROJECT, versions

WITHOUT_DASHBOARD = Path(__file__).parents[1] / "support" / "without_dashboard.py"


@pytest.fixture
def nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the PATH in which `nsys` is; its calls are noted in the file "calls"."""
    folder = fake_nsys.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def no_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def submit(result_dir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(WITHOUT_DASHBOARD),
        "submit",
        "--nsys",
        *SMALL,
        "--result-dir",
        str(result_dir),
        *flags,
    ]
    return subprocess.run(command, env=without_ray(), capture_output=True, text=True, timeout=200)


# -- the workers under nsys


@pytest.mark.ray
def test_every_rank_leaves_a_report_named_after_it(nsys: Path, tmp_path: Path) -> None:
    done = submit(tmp_path / "50% off")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "50% off").glob("tiny-*/nsys/*")
    assert f"reports of Nsight Systems will be in {folder.parent}" in done.stderr
    assert folder.name == "tiny.tp2.torch.float32"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        f"rank{rank}.nsys-rep": "a report\n" for rank in (0, 1)
    }
    calls = (nsys / "calls").read_text().splitlines()
    assert len(calls) == 2
    for call in calls:
        assert call.startswith("profile --trace=cuda,nvtx --cuda-graph-trace=node --sample=none ")
        assert f" {sys.executable} " in call


def run_wrapped(report: Path, *program: str) -> int:
    """As Ray starts a worker: the command is put before the arguments and given to a shell."""
    return subprocess.run(
        ["bash", "-c", f"exec {nsight.command(report, 'env')} {shlex.join(program)}"], timeout=30
    ).returncode


def test_a_report_has_its_name_only_when_it_is_whole(nsys: Path, tmp_path: Path) -> None:
    report = tmp_path / "it's 100%" / "ab12-0.nsys-rep"
    run_wrapped(report, "bash", "-c", f"ls {shlex.quote(str(report.parent))} > {tmp_path}/seen")
    assert (tmp_path / "seen").read_text() == ""
    assert [file.name for file in report.parent.iterdir()] == [report.name]


def test_a_worker_is_the_head_of_its_own_process_group(nsys: Path, tmp_path: Path) -> None:
    """Ray ends the group of a worker that has left it, and with it would go an nsys that is
    writing."""
    run_wrapped(
        tmp_path / "ab12-0.nsys-rep",
        sys.executable,
        "-c",
        f"import os; open('{tmp_path}/own', 'w').write(str(os.getpgrp() == os.getpid()))",
    )
    assert (tmp_path / "own").read_text() == "True"


def test_reports_are_added_to_those_of_an_earlier_start(tmp_path: Path) -> None:
    for start in ("ab12", "cd34", "ef56"):
        (tmp_path / f"{start}-0.nsys-rep").write_text(start)
        assert nsight.name_reports({str(tmp_path / f"{start}-0.nsys-rep"): 3}, timeout_s=5) == []
    names = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert names == {
        "rank3.nsys-rep": "ab12",
        "rank3-2.nsys-rep": "cd34",
        "rank3-3.nsys-rep": "ef56",
    }


def test_an_nsys_that_writes_nothing_is_told_of_and_not_waited_for(
    nsys: Path, tmp_path: Path
) -> None:
    (nsys / "nsys").write_text("#!/bin/sh\nexit 1\n")
    report = tmp_path / "reports" / "ab12-0.nsys-rep"
    run_wrapped(report, "true")
    assert nsight.name_reports({str(report): 0}, timeout_s=60) == ["nsys wrote no report of rank 0"]
    assert list(report.parent.iterdir()) == []
    assert nsight.name_reports({str(report): 0}, timeout_s=0.2) == [
        f"nsys had not written {report} after 0.2 s"
    ]


def test_what_an_nsys_without_its_importer_gathered_is_kept(nsys: Path, tmp_path: Path) -> None:
    gather = (
        'for word; do case "$word" in --output=*) touch "${word#--output=}.qdstrm";; esac; done'
    )
    (nsys / "nsys").write_text(f"#!/bin/bash\n{gather}\n")
    report = tmp_path / "reports" / "ab12-0.nsys-rep"
    run_wrapped(report, "true")
    (said,) = nsight.name_reports({str(report): 2}, timeout_s=60)
    assert [file.name for file in report.parent.iterdir()] == ["rank2.qdstrm"]
    assert "rank2.qdstrm, of which QdstrmImporter" in said


# -- where it is not installed


def test_without_nsys_nothing_is_begun(no_nsys: None, tmp_path: Path) -> None:
    refused = submit(tmp_path / "results")
    said = (
        "error: --nsys needs Nsight Systems: no `nsys` on the PATH of this machine; install it "
        "there, or leave --nsys out\n"
    )
    assert (refused.returncode, refused.stderr) == (2, said)
    assert not (tmp_path / "results").exists()


def node(address: str, gpus: int, nsys: bool) -> Node:
    return Node(address, {"cuda": gpus, "cpu": 8}, profilers=("nsys",) if nsys else ())


def joined(*nodes: Node) -> Cluster:
    return Cluster(nodes, embedded=False, address="10.0.0.1:6379", dashboard=Future())


def test_nodes_without_nsys_are_named_if_they_may_get_a_rank() -> None:
    there = joined(
        node("10.0.0.1", 0, False), node("10.0.0.2", 4, True), node("10.0.0.3", 4, False)
    )
    assert there.without("nsys", "cuda") == ("10.0.0.3",)
    assert there.without("nsys", "cpu") == ("10.0.0.1", "10.0.0.3")


def test_a_node_says_what_it_has(ray_cluster: Cluster) -> None:
    (here,) = ask_nodes()
    there = tuple(tool for tool in ("nsys", "ncu") if shutil.which(tool))
    assert (here.python, here.profilers) == (sys.executable, there)
    assert (here.counts["cpu"], here.version) == (4, versions()[PROJECT])


def test_the_nodes_of_a_joined_cluster_are_looked_at_and_this_machine_is_not(no_nsys: None) -> None:
    nsight.check("nsys", "cuda", joined(node("10.0.0.1", 0, False), node("10.0.0.2", 4, True)))
    without = joined(node("10.0.0.3", 4, False), node("10.0.0.4", 4, False))
    with pytest.raises(UserError, match=r"PATH of node 10\.0\.0\.3, node 10\.0\.0\.4; install"):
        nsight.check("nsys", "cuda", without)
    with pytest.raises(UserError, match="PATH of this machine; install"):
        nsight.check("nsys", "cuda", None)


# -- what belongs together


def test_results_under_nsys_are_kept_apart_and_others_keep_their_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields: list[set[str]] = []
    monkeypatch.setattr(
        "orchestrator.store.identity.digest", lambda value: str(fields.append(set(value)))
    )
    assert [identity_of(Experiment()), identity_of(Experiment(nsys=True))] == ["None", "None"]
    assert fields[1] - fields[0] == {"nsys"}


def test_reports_are_in_the_results_or_on_the_nodes_of_a_joined_cluster() -> None:
    experiment, there = Experiment(nsys=True, device="cpu"), joined(node("10.0.0.2", 0, True))
    name = f"tiny-{identity_of(experiment)}"
    results = Path("results", name)
    assert nsight.folder(results, joined=False) == Path.cwd() / "results" / name / "nsys"
    assert nsight.folder(results, joined=True) == Path(f"/tmp/{name}.nsys")
    place = choose_device(experiment, Topology(()))
    (planned,) = plan_experiment(experiment, *place, there)
    assert planned.plan.nsys_dir == f"/tmp/{name}.nsys/{planned.deployment.name}"
    (remark,) = remarks(experiment, [planned], place[1], there)
    assert f"on the node of each rank, in /tmp/{name}.nsys" in remark


# -- ranges


class Recorder:
    """What is pushed and popped, as the paths of the ranges in the order they were opened."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.paths: list[tuple[str, ...]] = []

    def push(self, name: str) -> None:
        self.open.append(name)
        self.paths.append(tuple(self.open))

    def pop(self) -> None:
        self.open.pop()


def recorded(folder: Path, nsys_dir: str | None) -> Recorder:
    """One rank on the CPU serves two requests; what it named."""
    recorder = Recorder()
    work = Work(ragged_requests(read_shape(folder).vocab_size, count=2), max_concurrency=2)
    plan = engine_plan(
        "tp1", read_shape(folder), folder, work, nsys_dir=nsys_dir, prefill_tokens=64
    )
    engine = TorchEngine()
    engine.build(
        RankContext(
            0, plan.placement, torch.device("cpu"), ranges=PushedRanges(recorder.push, recorder.pop)
        ),
        plan,
    )
    engine.run(work)
    engine.close()
    return recorder


def test_steps_hold_layers_and_layers_hold_their_halves(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("Llama")
    recorder, layers = recorded(folder, nsys_dir="/somewhere"), read_shape(folder).num_layers
    assert recorder.open == []
    steps = [path[0] for path in recorder.paths if len(path) == 1]
    assert steps[:3] == [
        "prefill step 0 micro-batch 0",
        "decode step 1 micro-batch 0",
        "decode step 2 micro-batch 0",
    ]
    for step in steps:
        inside = [path[1:] for path in recorder.paths if path[0] == step]
        wanted = [
            part
            for name in (f"layer {index}" for index in range(layers))
            for part in ((name,), (name, "attention"), (name, "mlp"))
        ]
        assert inside == [(), *wanted]


def test_layers_of_a_run_that_nobody_watches_name_nothing(
    checkpoint: Callable[[str], Path],
) -> None:
    assert {len(path) for path in recorded(checkpoint("Llama"), nsys_dir=None).paths} == {1}


def test_a_range_ends_where_its_inside_fails() -> None:
    recorder = Recorder()
    with (
        pytest.raises(ValueError, match="inside"),
        PushedRanges(recorder.push, recorder.pop).span("step"),
    ):
        raise ValueError("inside")
    assert recorder.open == []


def test_nothing_is_named_unless_it_is_asked_for_and_torch_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert isinstance(ranges_for(False), NoRanges)
    assert isinstance(ranges_for(True), PushedRanges)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert isinstance(ranges_for(True), NoRanges)


def test_under_nsys_no_run_on_a_gpu_is_taken_apart(checkpoint: Callable[[str], Path]) -> None:
    shape = read_shape(checkpoint("Llama"))
    plain = engine_plan("tp1", shape, None, Work(ragged_requests(shape.vocab_size, count=1), 1))
    watched = replace(plain, nsys_dir="/somewhere")
    on_gpu = [replace(plan, device="cuda") for plan in (plain, watched)]
    assert [is_observable(plan) for plan in (plain, watched, *on_gpu)] == [True, True, True, False]
