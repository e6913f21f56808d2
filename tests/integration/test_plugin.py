"""A layout in a package of its own: installed from a folder, listed, planned and run; and one that
is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "mlp_tp"


def orchestrator(
    *arguments: str, plugins: Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(plugins)}
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(
        command, env=environment, cwd=plugins, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example, away from this environment."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("plugins")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(
                file.read_bytes()
            )  # pip builds in place: keep the checkout clean
    flags = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, str(source)], check=True, timeout=120
    )
    return target


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An installed plug-in that raises when it is imported."""
    info = tmp_path / "broken_layout-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-layout\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[orchestrator.strategies]\nbad = broken_layout:bad\n[orchestrator.engines]\nbroken = "
        "broken_layout:Broken\n"
    )
    (tmp_path / "broken_layout.py").write_text("raise RuntimeError('no licence found')\n")
    return tmp_path


def test_the_example_is_short() -> None:
    assert (
        sum(
            len(file.read_text().splitlines())
            for file in EXAMPLE.iterdir()
            if file.suffix in (".py", ".toml")
        )
        < 100
    )


def test_it_is_listed_and_planned(installed: Path) -> None:
    done = orchestrator("strategies", "--json", plugins=installed)
    row = next(row for row in json.loads(done.stdout)["strategies"] if row["name"] == "mtp")
    assert row["source"] == "mlp-tp"
    assert row["error"] is None
    assert row["summary"].startswith("Cut the MLP alone")


def test_it_halves_the_all_reduces_and_replicates_attention(installed: Path) -> None:
    done = orchestrator(
        "explain", "mtp4", "tp4", "--model", "llama-8b", "--json", plugins=installed
    )
    mtp, tp = json.loads(done.stdout)
    counts = [
        {one["op"]: one["calls"] for one in layout["ranks"][0]["collectives"]}
        for layout in (mtp, tp)
    ]
    assert counts == [{"all_reduce": 32}, {"all_reduce": 65, "all_gather": 1}]
    assert mtp["ranks"][3]["slices"]["heads"] == [0, 32]
    assert mtp["ranks"][3]["slices"]["MLP columns"] == [3 * 14336 // 4, 14336]
    assert mtp["ranks"][0]["kv_bytes_per_token"] == 4 * tp["ranks"][0]["kv_bytes_per_token"]


def test_it_composes_with_others_and_refuses_what_does_not_divide(installed: Path) -> None:
    done = orchestrator("explain", "pp2mtp2dp2", "--json", plugins=installed)
    assert json.loads(done.stdout)[0]["layout"] == "pp2dp2mtp2"
    done = orchestrator("explain", "mtp3", plugins=installed)
    assert (done.returncode, done.stderr) == (
        2,
        "error: 704 MLP columns of tiny do not divide over mtp=3\n",
    )
    done = orchestrator("explain", "tp2mtp2", plugins=installed)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the axis tp is in the layout already; name it once\n",
    )


@pytest.mark.ray
def test_it_runs(installed: Path, tmp_path: Path) -> None:
    """The same greedy text as on one device: the engine needs to know nothing of the layout."""
    lengths = [
        "--input-len",
        "12",
        "--output-len",
        "6",
        "--max-concurrency",
        "2",
        "--num-warmups",
        "0",
        "--save-detailed",
    ]
    flags = [
        "--strategy",
        "mtp2,tp1",
        "--model",
        "tiny",
        "--device",
        "cpu",
        *lengths,
        "--result-dir",
        str(tmp_path),
    ]
    done = orchestrator("submit", *flags, plugins=installed, timeout=200)
    assert done.returncode == 0, done.stderr
    exported = orchestrator(
        "export",
        str(tmp_path),
        "--format",
        "csv",
        "--out",
        str(tmp_path / "csv"),
        plugins=installed,
    )
    assert exported.returncode == 0, exported.stderr
    assert (
        outputs(tmp_path / "csv" / "requests.csv", "mtp2")
        == outputs(tmp_path / "csv" / "requests.csv", "tp1")
        != {}
    )


def outputs(path: Path, strategy: str) -> dict[str, str]:
    import csv

    with path.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["strategy"] == strategy]
    return {row["request_index"]: row["output_token_ids"] for row in rows}


def test_a_broken_plug_in_is_named_and_the_others_work(broken: Path) -> None:
    done = orchestrator("strategies", "--json", plugins=broken)
    found = json.loads(done.stdout)
    errors = {
        row["name"]: row["error"] for row in found["strategies"] + found["engines"] if row["error"]
    }
    assert errors == {
        "bad": "RuntimeError: no licence found",
        "broken": "RuntimeError: no licence found",
    }
    assert orchestrator("explain", "tp2", plugins=broken).returncode == 0
    done = orchestrator("explain", "bad2", plugins=broken)
    assert done.returncode == 2
    assert (
        done.stderr == "error: bad2: the strategy 'bad' from broken-layout could not be loaded: "
        "RuntimeError: no licence found\n"
    )
    done = orchestrator("submit", "--engine", "broken", "--dry-run", plugins=broken)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: the engine 'broken' could not be loaded: RuntimeError: no licence found\n"
    )
