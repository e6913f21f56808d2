"""The commands on runs: one to begin with, one that goes on, and those that were made."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from orchestrator.commands import initial, results, watching
from orchestrator.commands.places import downloaded, is_uri
from orchestrator.options import json_option
from orchestrator.options.places import PATH, Named
from orchestrator.report.output import Output


class Results(Named):
    """A folder of results. Of a URI it is a copy, which is removed when the command ends; its path
    says the URI."""

    name = "results"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read it. Raises UserError where there are no results at the URI, or its store cannot be
        reached."""
        if not is_uri(value) or ctx is None:
            return super().convert(value, param, ctx)
        root = ctx.with_resource(tempfile.TemporaryDirectory(prefix="orchestrator-"))
        return downloaded(value, Path(root))


RESULTS = Results()


@click.command()
@click.option("--model", metavar="PATH|PRESET", help="[the largest preset that fits]")
@click.option(
    "--out", type=PATH, default=Path("experiment.yaml"), metavar="FILE", help="[experiment.yaml]"
)
@json_option
def init(model: str | None, out: Path, as_json: bool) -> None:
    """Write an experiment for this machine: layouts that fit, loads, and how long it takes."""
    initial.init(out, model, Output(as_json))


@click.command()
@click.argument("roots", metavar="[RESULT_DIR]...", default=("results",), nargs=-1, type=PATH)
@click.option("--once", is_flag=True, help="Show it as it is, and leave.")
@json_option
def watch(roots: tuple[Path, ...], once: bool, as_json: bool) -> None:
    """Show the run that began last, from another terminal."""
    watching.watch(roots, once, Output(as_json))


@click.command()
@click.argument("roots", metavar="[ROOT]...", default=("results",), nargs=-1, type=RESULTS)
@json_option
def runs(roots: tuple[Path, ...], as_json: bool) -> None:
    """List what was run under each ROOT. [results]"""
    results.runs(roots, as_json)


COMMANDS = (init, watch, runs)
