"""`benchmarks/all_layouts.py` asks for what the command line knows, and stops where it has to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.cli import main as cli
from orchestrator.commands import predicting, submitting
from orchestrator.config import given, load_experiment
from orchestrator.store.identity import identity_of

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


def value(call: list[str], option: str) -> str:
    return call[call.index(option) + 1]


@pytest.mark.parametrize("gpus", ["2", "4"])
def test_every_call_is_one_that_the_command_line_takes(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, gpus: str, tmp_path: Path
) -> None:
    words = ("--gpus", gpus, "--engine", "torch,vllm", "--result-dir", str(tmp_path))
    calls = asked(script, monkeypatch, *words)
    assert [name for name, *_ in calls] == ["calibrate", *["submit"] * 18]
    for name, *rest in calls:
        cli.commands[name].make_context(name, rest)


def test_each_model_has_one_more_start_of_every_layout_in_turn(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asked(script, monkeypatch, "--parts", "layouts", "--engine", "torch,vllm")[1:]
    turns = [(value(call, "--model"), value(call, "--num-starts")) for call in calls]
    models = ("qwen2.5-32b", "llama-70b")
    assert turns == [(model, str(starts)) for starts in (1, 2, 3) for model in models]
    assert {value(call, "--strategy") for call in calls[::2]} == {"tp4,pp4,tp2pp2,dp4"}
    assert {value(call, "--strategy") for call in calls[1::2]} == {"tp4,pp4,tp2pp2"}
    assert all("--save-spans" in call for call in calls)
    assert {value(call, "--max-concurrency") for call in calls} == {"1,32,100"}


def identity(call: list[str]) -> str:
    """Of the results that a call adds to."""
    options = cli.commands["submit"].make_context("submit", call[1:]).params
    predicting.machines_of(options)
    submitting.flags_of(options)
    del options["config"], options["as_json"]
    return identity_of(load_experiment(None, given(**options)))


@pytest.mark.parametrize(
    ("model", "published"), [("qwen2.5-32b", "01cb93f24a"), ("llama-70b", "6b2d31c712")]
)
def test_later_starts_add_to_the_results_of_the_first_which_are_those_published(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, model: str, published: str
) -> None:
    words = (model, "--parts", "layouts", "--engine", "torch,vllm")
    assert {identity(call) for call in asked(script, monkeypatch, *words)[1:]} == {published}


def test_longer_prompts_are_for_tp_alone_and_collectives_left_out_where_tp_has_some(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asked(script, monkeypatch, "qwen2.5-32b", "--starts", "1")[1:]
    assert [value(call, "--strategy") for call in calls[1:]] == ["tp4", "tp4,tp2pp2"]
    assert value(calls[1], "--scenario") == "long"
    assert value(calls[2], "--ablate") == "comm"


def test_layouts_and_parts_can_be_chosen(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("llama-70b", "--parts", "layouts", "without", "--layouts", "pp4,tp2pp2")
    calls = asked(script, monkeypatch, *words, "--starts", "1")[1:]
    assert [value(call, "--result-dir") for call in calls] == ["results/layouts", "results/without"]
    assert [value(call, "--strategy") for call in calls] == ["pp4,tp2pp2", "tp2pp2"]


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
    assert not script.ran([warned], script.time.monotonic() + 4)  # above what Python takes
    with pytest.raises(SystemExit, match="status 2"):
        script.ran(["raise SystemExit(2)"], script.time.monotonic() + 30)


def test_a_call_that_ignores_its_warning_is_stopped(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "import signal, time\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\ntime.sleep(60)"
    monkeypatch.setattr(script, "ORCHESTRATOR", (sys.executable, "-c"))
    monkeypatch.setattr(script, "NOTICE_S", 0.5)
    began = script.time.monotonic()
    assert not script.ran([deaf], began + 2)
    assert script.time.monotonic() - began < 30


def test_nothing_begins_after_the_deadline(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "ORCHESTRATOR", (sys.executable, "-c"))
    assert not script.ran(["raise SystemExit(2)"], script.time.monotonic())
