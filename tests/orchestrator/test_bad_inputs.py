"""Whatever a command is given, it answers in one line, or does it; it starts nothing, and no
traceback is seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import bad_inputs
import pytest
from bad_inputs import Case
from click.testing import CliRunner

from orchestrator import cli
from orchestrator.cluster import hardware
from orchestrator.commands.boundary import UNFORESEEN
from orchestrator.plan import fitting

pytestmark = pytest.mark.slow

LONGEST = 700  # characters of an error
KINDS: dict[str, Callable[[Path], Iterable[Case]]] = {
    "flags": lambda _: bad_inputs.flags(),
    "training": lambda _: bad_inputs.training(),
    "commands": lambda _: bad_inputs.commands(),
    "YAML": lambda _: bad_inputs.yaml_files(),
    "datasets": lambda _: bad_inputs.datasets(),
    "checkpoints": bad_inputs.checkpoints,
    "manifests": lambda _: bad_inputs.manifests(),
    "plug-ins": lambda _: bad_inputs.plugins(),
}


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(fitting, "main_memory", lambda: 16 * 10**9)
    monkeypatch.setattr("strategies.registry.LIMIT_S", 0.2)
    monkeypatch.setattr("workers.engines.LIMIT_S", 0.2)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)


def complaint(case: Case) -> str | None:
    """What is wrong with the answer to `case`; None where it is as it must be."""
    done = CliRunner().invoke(cli.main, list(case.command))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"raises {type(done.exception).__name__}"
    if done.exit_code == UNFORESEEN or "Traceback" in done.output:
        return f"is unforeseen: {done.stderr[-300:]}"
    if "\x1b" in done.output:
        return "colours the terminal"
    if done.exit_code == 0:
        return None if done.stdout else "prints nothing and exits with 0"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if len(errors) != 1 or len(errors[0]) > LONGEST or done.stdout:
        return f"is not refused in one short line: {done.output[:300]}"
    return None


def forget() -> None:
    """Have the next command import its plug-in anew."""
    for name in [name for name in sys.modules if name.startswith("odd_plugin")]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_answered_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = []
    for number, case in enumerate(KINDS[kind](tmp_path / "good")):
        here = tmp_path / str(number)
        case.write(here)
        here.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.chdir(here)
            patch.syspath_prepend(str(here))
            if said := complaint(case):
                wrong.append(f"{case.name} {said}")
            forget()
    assert wrong == []


def test_there_are_hundreds_of_distinct_cases(tmp_path: Path) -> None:
    cases = [case for make in KINDS.values() for case in make(tmp_path / "good")]
    assert len({case.name for case in cases}) > 300


@pytest.mark.parametrize("name", ["prints", "prints below"])
def test_what_a_plug_in_prints_is_not_in_the_document(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = next(
        one for one in bad_inputs.plugins() if one.name == f"plug-in {name}: strategies --json"
    )
    case.write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit):
        cli.main(list(case.command))
    forget()
    out, err = capfd.readouterr()
    assert {row["name"] for row in json.loads(out)["engines"]} >= {"odd", "torch"}
    assert "hello" in err


def test_what_nobody_foresaw_is_one_line_and_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("\x1b[31mby\nzero")

    monkeypatch.setattr("orchestrator.commands.node.strategies", fail)
    done = CliRunner().invoke(cli.main, ["strategies"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (UNFORESEEN, "", 1)
    assert "ZeroDivisionError: \\x1b[31mby zero" in done.stderr
    path = Path(done.stderr.partition("traceback: ")[2].partition(")")[0])
    assert "raise ZeroDivisionError" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
