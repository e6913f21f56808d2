"""`orchestrator init`, and where the paths of a file are seen from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from orchestrator import cli
from orchestrator.cluster import hardware
from orchestrator.cluster.hardware import Device, Topology
from orchestrator.commands.initial import _choice, _layouts, _text
from orchestrator.config import PATHS, load_experiment
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.store.identity import identity_of

H200 = 150_754_820_096


def init(folder: Path, *words: str) -> Any:
    return CliRunner().invoke(cli.main, ["init", "--out", str(folder / "e.yaml"), *words])


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two H200, of which nobody needs to have one."""
    there = tuple(Device("here", n, H200, "NVIDIA H200", (9, 0)) for n in range(2))
    monkeypatch.setattr(hardware, "local_topology", lambda *_: Topology(there))


def test_without_gpus_it_is_tiny_and_nothing_is_ranked(tmp_path: Path) -> None:
    done = init(tmp_path)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "e.yaml").read_text()
    assert "No GPU was found" in text
    assert "verdicts" not in text
    assert max(map(len, text.splitlines())) <= 100
    asked = load_experiment(tmp_path / "e.yaml", {})
    assert (asked.model, asked.strategy) == ("tiny", ("tp4", "tp2pp2", "pp4", "dp4"))


@pytest.mark.usefixtures("gpus")
def test_on_gpus_it_is_the_largest_preset_that_fits_with_how_long_that_takes(
    tmp_path: Path,
) -> None:
    done = init(tmp_path)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "e.yaml").read_text()
    assert "# Found 2 x NVIDIA H200.\n" in text
    assert "verdicts" in text
    assert "as predicted, and the builds of the layouts" in text
    asked = load_experiment(tmp_path / "e.yaml", {})
    assert (asked.model, asked.load_format) == ("llama-70b", "dummy")
    assert asked.strategy == ("tp2", "pp2")


@pytest.mark.usefixtures("gpus")
def test_a_layout_that_does_not_fit_stands_there_with_its_reason(tmp_path: Path) -> None:
    init(tmp_path)
    (line,) = [line for line in (tmp_path / "e.yaml").read_text().splitlines() if "dp2" in line]
    assert line.startswith("  # - dp2: ")
    assert "141.1 GB" in line


@pytest.mark.usefixtures("gpus")
def test_what_runs_nowhere_is_refused_and_a_file_is_never_replaced(tmp_path: Path) -> None:
    done = init(tmp_path, "--model", "no-such-model")
    assert done.exit_code == 2
    assert "runs under no layout here" in done.stderr
    assert not (tmp_path / "e.yaml").exists()
    (tmp_path / "e.yaml").write_text("mine")
    assert "is there already" in init(tmp_path).stderr
    assert (tmp_path / "e.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (1, ["tp1"]),
        (2, ["tp2", "pp2", "dp2"]),
        (6, ["tp2pp3", "pp6", "dp6"]),
        (8, ["tp8", "tp4pp2", "tp2pp4", "pp8", "dp8"]),
    ],
)
def test_layouts_use_all_devices(devices: int, names: list[str]) -> None:
    assert _layouts(devices) == names


def test_a_relative_path_of_a_file_is_seen_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "e.yaml").write_text("model: checkpoint\ndataset_path: prompts.jsonl\n")
    asked = load_experiment(folder / "e.yaml", {})
    assert asked.dataset_path == folder / "prompts.jsonl"
    assert asked.model == str(folder / "checkpoint")
    flagged = load_experiment(folder / "e.yaml", {"dataset_path": Path("here.jsonl")})
    assert flagged.dataset_path == Path("here.jsonl")
    (folder / "e.yaml").write_text("model: tiny\ndataset_path: /there.jsonl\n")
    there = load_experiment(folder / "e.yaml", {})
    assert (there.model, there.dataset_path) == ("tiny", Path("/there.jsonl"))


def test_a_path_that_begins_with_a_tilde_is_seen_from_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "e.yaml").write_text("dataset_path: ~/a.jsonl\n")
    assert load_experiment(tmp_path / "e.yaml", {}).dataset_path == tmp_path / "a.jsonl"
    flagged = load_experiment(None, {"dataset_path": Path("~/b.jsonl"), "result_dir": Path("~")})
    assert (flagged.dataset_path, flagged.result_dir) == (tmp_path / "b.jsonl", tmp_path)
    (tmp_path / "e.yaml").write_text("dataset_path: ~nobody-here/a.jsonl\n")
    with pytest.raises(UserError, match=r"'~nobody-here/a\.jsonl' names the home of"):
        load_experiment(tmp_path / "e.yaml", {})


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_named_and_of_this_machine(name: str, tmp_path: Path) -> None:
    for blank in ("", "  "):
        (tmp_path / "e.yaml").write_text(f"{name}: '{blank}'\n")
        with pytest.raises(UserError, match=f"^{name}: it is blank; name a file or a folder"):
            load_experiment(tmp_path / "e.yaml", {})
    (tmp_path / "e.yaml").write_text(f"{name}: 5\n")
    with pytest.raises(UserError, match=f"e.yaml: {name}: input is not a path, found 5$"):
        load_experiment(tmp_path / "e.yaml", {})
    (tmp_path / "e.yaml").write_text(f"{name}: s4://b/c\n")
    with pytest.raises(UserError, match=r"s4://b/c'? is (no place for|a URI; give a)"):
        load_experiment(tmp_path / "e.yaml", {})


@pytest.mark.parametrize("blank", ["", "  "])
def test_no_command_takes_a_blank_path_for_the_folder_that_one_is_in(blank: str) -> None:
    """Each has options or arguments that are paths; all of them go through one of two types."""
    taken = 0
    for command in cli.main.commands.values():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                context = click.Context(command)
                with pytest.raises(click.BadParameter, match="it is blank; name a file or a"):
                    parameter.type.convert(blank, parameter, context)
                taken += 1
    assert taken > 30


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_model_is_refused(blank: str) -> None:
    done = CliRunner().invoke(cli.main, ["explain", "tp1", "--model", blank])
    assert done.stderr.startswith("error: the model has no name. Presets: llama-3b,")


def test_every_field_that_is_a_path_is_seen_as_one() -> None:
    fields = Experiment.model_fields.items()
    assert {name for name, field in fields if "Path" in str(field.annotation)} == set(PATHS)


def test_the_same_file_is_the_same_experiment_from_wherever_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b", "output_len": 2}\n')
    (tmp_path / "e.yaml").write_text("dataset_path: prompts.jsonl\n")
    (tmp_path / "deep").mkdir()
    seen = []
    for folder, config in ((".", "e.yaml"), ("deep", "../e.yaml"), (".", str(tmp_path / "e.yaml"))):
        monkeypatch.chdir(tmp_path / folder)
        seen.append(identity_of(load_experiment(Path(config), {})))
    assert len(set(seen)) == 1


def test_a_path_of_the_model_with_any_character_is_read_as_it_was_written(tmp_path: Path) -> None:
    here = Topology(())
    (tmp_path / "e.yaml").write_text(
        _text("/models/my #1: a", here, [_choice("tp1", "tiny", here)])
    )
    assert load_experiment(tmp_path / "e.yaml", {}).model == "/models/my #1: a"


@pytest.mark.parametrize(
    ("given", "needed"), [({"max_starts": 5}, "until_ci"), ({"rate_runs": 3}, "find_rate")]
)
def test_a_field_that_would_have_no_effect_is_refused(given: dict[str, int], needed: str) -> None:
    with pytest.raises(Exception, match=f"give {needed} too"):
        load_experiment(None, given)
