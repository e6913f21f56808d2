"""Nsight Compute around one rank, with a script in the place of `ncu`, from the driver to the table
of kernels and what is shown of it."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import fake_ncu
import pytest
from recorder import Recorder
from variables import without_ray

from orchestrator.analysis.comparing.findings import of_folders
from orchestrator.analysis.kernels import CELL_KERNELS, CellKernel
from orchestrator.cluster import nsight
from orchestrator.experiment import Experiment
from orchestrator.plan.planning import cpu_devices, plan_experiment
from orchestrator.run import driver
from orchestrator.store.folders import find
from orchestrator.store.store import Store
from workers.records import COUNTERS


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the PATH in which `ncu` is; its calls are noted in the file "calls". No
    Ray is known here that was begun with another PATH."""
    folder = fake_ncu.install(tmp_path / "bin", fake_ncu.output())
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in os.environ.keys() - without_ray().keys():
        monkeypatch.delenv(name)
    return folder


def counted(results: Path, strategy: str) -> tuple[Path, list[str]]:
    """A run on the CPU whose kernels are counted, which `submit` would refuse, and what was noted:
    in a process of its own, as this one may be in a Ray of other tests."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_counted, results, strategy).result()


def _counted(results: Path, strategy: str) -> tuple[Path, list[str]]:
    fields = {"strategy": strategy, "input_len": 16, "output_len": 4, "max_concurrency": 2}
    asked = Experiment(**{**fields, "device": "cpu", "result_dir": results, "num_warmups": 1})
    planned = plan_experiment(asked, "cpu", cpu_devices(asked.strategy))
    seen = Recorder()
    driver.connect = functools.partial(driver.connect, dashboard=False)  # type: ignore[assignment]
    folder = driver.run_experiment(planned, asked.model_copy(update={"ncu": True}), seen)
    return folder, seen.notes


def kernels(folder: Path) -> list[CellKernel]:
    table = Store(folder).read("kernels")
    assert table is not None
    return CELL_KERNELS.rows(table)


def orchestrator(*arguments: str) -> str:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
def test_a_rank_is_counted_and_its_kernels_are_in_every_result(ncu: Path, tmp_path: Path) -> None:
    folder, notes = counted(tmp_path / "50% off", "tp2")
    assert notes == []
    found = kernels(folder)
    assert [one.kernel for one in found] == [name for name, *_ in fake_ncu.ROWS]
    assert {(one.cell.strategy, one.start, one.rank, one.num_requests) for one in found} == {
        ("tp2", 0, 0, 2)
    }
    (call,) = (ncu / "calls").read_text().splitlines()  # of two ranks one is watched
    assert f"--metrics {','.join(COUNTERS.values())} " in call
    assert f" setsid --wait {sys.executable} " in call
    (written,) = (folder / "ncu").iterdir()
    assert written.name == "tiny.tp2.torch.float32.16x4.c2.s0.csv"
    assert written.read_text() == fake_ncu.output()
    _is_shown(folder)
    _is_packed(folder, tmp_path)


def _is_shown(folder: Path) -> None:
    first, _ = of_folders([folder]).kernels
    assert (first.kernel, first.calls, first.total_us) == (fake_ncu.MATMUL, 2, 122.88)
    said = json.loads(orchestrator("compare", str(folder), "--json"))["kernels"]
    assert [one["place"] for one in said] == [1, 2]
    text = orchestrator("compare", str(folder))
    assert "a decode step of 2 requests on rank 0" in text
    assert "norm_kernel<c10::BFloat16, 8> " in text
    orchestrator("report", str(folder))
    page = (folder / "report.html").read_text()
    assert "The kernels that take most of a decode step" in page
    assert f'title="{fake_ncu.MATMUL}"' in page


def _is_packed(folder: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "packed", tmp_path / "again"
    orchestrator("pack", str(folder), "--out", str(packed))
    assert kernels(packed) == kernels(folder)
    orchestrator("unpack", str(packed), "--result-dir", str(again))
    (unpacked,) = find(again)
    assert kernels(unpacked) == kernels(folder)
    orchestrator("export", str(folder), "--format", "csv", "--out", str(tmp_path / "csv"))
    assert (tmp_path / "csv" / "kernels.csv").read_text().count(fake_ncu.MATMUL) == 2


# -- the command


def run_wrapped(report: Path, program: Sequence[str]) -> int:
    """As Ray starts a worker: the command is put before the arguments and given to a shell."""
    command = f"exec {nsight.counting_command(report, 'env')} {shlex.join(program)}"
    return subprocess.run(["bash", "-c", command], timeout=30).returncode


def test_what_ncu_wrote_has_its_name_only_when_it_is_whole(ncu: Path, tmp_path: Path) -> None:
    report = tmp_path / "it's 100%" / "cell.csv"
    report.parent.mkdir()
    report.write_text("of an earlier try")
    listed = f"ls {shlex.quote(str(report.parent))} > {tmp_path}/seen"
    assert run_wrapped(report, ["bash", "-c", listed]) == 0
    assert (tmp_path / "seen").read_text() == ""
    assert [file.name for file in report.parent.iterdir()] == [report.name]
    assert report.read_text() == fake_ncu.output()


def test_a_counted_worker_is_the_head_of_its_own_process_group(ncu: Path, tmp_path: Path) -> None:
    """Ray ends the group of a worker that has left it, and with it would go an ncu that is
    writing."""
    program = f"import os; open('{tmp_path}/own', 'w').write(str(os.getpgrp() == os.getpid()))"
    run_wrapped(tmp_path / "cell.csv", [sys.executable, "-c", program])
    assert (tmp_path / "own").read_text() == "True"


def test_numbers_are_written_as_they_are_read_whatever_the_locale(
    ncu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    run_wrapped(tmp_path / "cell.csv", ["bash", "-c", f"echo $LC_ALL > {tmp_path}/locale"])
    assert (tmp_path / "locale").read_text() == "C.UTF-8\n"
