"""`benchmarks/all_layouts.py` asks for what the command line knows, and stops where it has to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.cli import main as cli

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "all_layouts.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("all_layouts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[list[str]]:
    monkeypatch.setattr(sys, "argv", ["all_layouts.py", *words])
    return [list(command) for command in script.commands(script.parse())]


@pytest.mark.parametrize("gpus", ["2", "4"])
@pytest.mark.parametrize("model", ["qwen2.5-32b", "llama-70b"])
def test_every_call_is_one_that_the_command_line_takes(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, model: str, gpus: str, tmp_path: Path
) -> None:
    words = (model, "--gpus", gpus, "--engine", "torch,vllm", "--result-dir", str(tmp_path))
    calls = asked(script, monkeypatch, *words)
    assert [name for name, *_ in calls] == ["calibrate", "submit", "submit", "submit"]
    for name, *rest in calls:
        cli.commands[name].make_context(name, rest)


def test_the_larger_model_has_no_replica_on_each_gpu(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts = {
        model: call[call.index("--strategy") + 1]
        for model in ("qwen2.5-32b", "llama-70b")
        for call in asked(script, monkeypatch, model)[1:2]
    }
    assert layouts == {"qwen2.5-32b": "tp4,pp4,tp2pp2,dp4", "llama-70b": "tp4,pp4,tp2pp2"}


def test_parts_can_be_left_out(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(script, monkeypatch, "llama-70b", "--parts", "layouts", "without")
    folders = [call[call.index("--result-dir") + 1] for call in calls[1:]]
    assert folders == ["results/layouts", "results/without"]


def test_a_node_that_was_calibrated_is_not_calibrated_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fabric").mkdir()
    (tmp_path / "fabric" / "fabric.arrow").touch()
    calls = asked(script, monkeypatch, "llama-70b", "--result-dir", str(tmp_path))
    assert {name for name, *_ in calls} == {"submit"}


def test_a_call_that_outlasts_its_time_is_warned_and_leaves_the_rest(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(script, "ORCHESTRATOR", (sys.executable, "-c"))
    assert script.ran(["pass"], script.time.monotonic() + 30)
    assert not script.ran([warned], script.time.monotonic() + 2)
    with pytest.raises(SystemExit, match="status 2"):
        script.ran(["raise SystemExit(2)"], script.time.monotonic() + 30)
