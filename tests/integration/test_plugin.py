"""Layouts in packages of their own: installed from a folder, listed, planned and run; and one that
is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ("-m", "orchestrator")
WITHOUT_DASHBOARD = ROOT / "tests" / "support" / "without_dashboard.py"
EXAMPLES = (ROOT / "examples" / "mlp_tp", ROOT / "examples" / "pp_front")


def orchestrator(
    *arguments: str, plugins: Path, timeout: float = 120, program: Sequence[str] = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """The command line of this checkout, with `plugins` on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(plugins), str(ROOT)))}
    command = [sys.executable, *program, *arguments]
    return subprocess.run(
        command, env=environment, cwd=plugins, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the examples, away from this environment."""
    target = tmp_path_factory.mktemp("plugins")
    sources = [copied(example, tmp_path_factory.mktemp(example.name)) for example in EXAMPLES]
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *flags, *sources],
        check=True,
        timeout=120,
    )
    return target


def copied(example: Path, target: Path) -> str:
    """A copy of the files of `example`: pip builds in place, and the checkout is to stay clean."""
    for file in example.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return str(target)


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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_short(example: Path) -> None:
    files = [file for file in example.iterdir() if file.suffix in (".py", ".toml")]
    assert sum(len(file.read_text().splitlines()) for file in files) < 100


@pytest.mark.parametrize(
    ("key", "package", "summary"),
    [("mtp", "mlp-tp", "Cut the MLP alone"), ("ppfront", "pp-front", "Cut the layers into")],
)
def test_they_are_listed(installed: Path, key: str, package: str, summary: str) -> None:
    done = orchestrator("strategies", "--json", plugins=installed)
    row = next(row for row in json.loads(done.stdout)["strategies"] if row["name"] == key)
    assert row["source"] == package
    assert row["error"] is None
    assert row["summary"].startswith(summary)


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
def test_they_run(installed: Path, tmp_path: Path) -> None:
    """The same greedy text as on one device: the engine needs to know nothing of the layouts."""
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
        "mtp2,ppfront2,tp1",
        "--model",
        "tiny",
        "--device",
        "cpu",
        *lengths,
        "--result-dir",
        str(tmp_path),
    ]
    done = orchestrator(
        "submit", *flags, plugins=installed, timeout=200, program=[str(WITHOUT_DASHBOARD)]
    )
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
    requests = tmp_path / "csv" / "requests.csv"
    alone = outputs(requests, "tp1")
    assert alone != {}
    assert outputs(requests, "mtp2") == alone
    assert outputs(requests, "ppfront2") == alone


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
    place = f"{broken / 'broken_layout.py'}:1"
    assert errors == {
        "bad": f"RuntimeError: no licence found ({place})",
        "broken": "RuntimeError: no licence found",
    }
    assert orchestrator("explain", "tp2", plugins=broken).returncode == 0
    done = orchestrator("explain", "bad2", plugins=broken)
    assert done.returncode == 2
    assert (
        done.stderr == "error: bad2: the strategy 'bad' from broken-layout could not be loaded: "
        f"RuntimeError: no licence found ({place})\n"
    )
    done = orchestrator("submit", "--engine", "broken", "--dry-run", plugins=broken)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: the engine 'broken' could not be loaded: RuntimeError: no licence found\n"
    )
