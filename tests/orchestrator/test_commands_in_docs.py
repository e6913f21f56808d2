"""Every command that a page shows can be given: its options exist, and take the values it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pytest
from page_commands import PAGES, ROOT, commands, options

from orchestrator.cli import main
from orchestrator.cli.runs import Results
from orchestrator.commands import node, predicting, recommending, submitting
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.options.places import Here
from strategies import discover, parse

OF_EXAMPLES = {"mtp", "ppfront"}  # strategies that examples/ adds


def given(line: str) -> None:
    """Give a line to the command line. Raises what it says of a line that it refuses."""
    words = shlex.split(line, comments=True)
    context = main.make_context("orchestrator", [*words[:1], "--help"], resilient_parsing=True)
    name, command, rest = main.resolve_command(context, words)
    assert command is not None
    with command.make_context(name, list(rest), parent=context) as inner, suppress(SystemExit):
        if name in ASKING:
            command.invoke(inner)


@contextmanager
def only_said(allowed: re.Pattern[str], line: str) -> Iterator[None]:
    """Fail with what is said of a line, unless it is `allowed`."""
    try:
        yield
    except (click.ClickException, UserError) as error:
        said = error.message if isinstance(error, click.ClickException) else str(error)
        if not allowed.search(said):
            pytest.fail(f"{line}\n{said}")


def check(experiment: Experiment) -> None:
    """Every layout is of strategies that exist."""
    keys = {key for layout in experiment.strategy for key, _ in parse(layout)}
    assert keys <= {*discover(), *OF_EXAMPLES}


# The commands that make an experiment, whose fields have limits of their own -> what they call.
ASKING = {
    "submit": (submitting, "submit"),
    "ablate": (submitting, "submit"),
    "plan": (predicting, "plan"),
    "recommend": (recommending, "recommend"),
    "crossover": (recommending, "crossover"),
    "matrix": (recommending, "matrix"),
    "explain": (node, "explain"),
}


def _path(_: click.Path, value: str | Path, *__: object) -> Path | None:
    """FILE, and a file of fields that is not here, are the reader's."""
    is_theirs = str(value).isupper() or (str(value).endswith(".yaml") and not Path(value).exists())
    return None if is_theirs else Path(value)


@pytest.fixture(autouse=True)
def _nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end where their work would begin, and no path has to exist."""

    def begin(*asked: Any, **_: Any) -> int:
        for one in asked:
            if isinstance(one, Experiment):
                check(one)
        return 0

    for module, name in ASKING.values():
        monkeypatch.setattr(module, name, begin)
    for kind in (Here, Results):
        monkeypatch.setattr(kind, "convert", _path)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_can_be_given(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        try:
            given(line)
        except (click.ClickException, UserError) as error:
            pytest.fail(f"orchestrator {line}\n{error}")


# What a sentence leaves out, as the one around it says it: another option.
LEFT_OUT = re.compile(r" is about | go together; give both|; give \w+ too")
OF_OTHERS = {"CHANGELOG.md", "recommend.md"}  # their options are of other versions and commands


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in OF_OTHERS], ids=lambda page: page.name
)
def test_options_in_a_sentence_have_values_that_submit_takes(page: Path) -> None:
    known = {name for one in main.commands["submit"].params for name in one.opts}
    for line in options(page.read_text(encoding="utf-8")):
        if known.issuperset(word for word in line.split() if word.startswith("--")):
            with only_said(LEFT_OUT, line):
                given(f"submit {line}")


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    text = (
        "Say `orchestrator runs results` or `orchestrator submit ...`.\n"
        "```\n$ orchestrator plan --gpu h200 \\\n    --gpus 4   # four of them\n"
        "ray exec cluster.yaml 'orchestrator submit --strategy tp4'\ncd orchestrator\n```\n"
    )
    assert [" ".join(shlex.split(line, comments=True)) for line in commands(text)] == [
        "plan --gpu h200 --gpus 4",
        "submit --strategy tp4",
        "runs results",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "submit --stategy tp4",
        "submit --strategy 4tp",
        "submit --strategy qq4",
        "submit --dtype float8",
        "submit --max-concurrency some",
        "plan --gpus many",
        "sumbit",
    ],
)
def test_a_command_with_a_mistake_cannot_be_given(line: str) -> None:
    with pytest.raises((click.ClickException, UserError, ValueError, AssertionError)):
        given(line)


def test_the_readme_generates_with_what_it_has_trained() -> None:
    lines = [shlex.split(line) for line in commands((ROOT / "README.md").read_text("utf-8"))]
    (trains,) = [line for line in lines if "train" in line]
    folder, layout = (
        trains[trains.index(name) + 1] for name in ("--save-checkpoint", "--strategy")
    )
    (generates,) = [line for line in lines if f"{folder}/tiny.{layout}.torch.float32" in line]
    assert generates[generates.index("--strategy") + 1] != layout
