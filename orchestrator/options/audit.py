"""The options of `audit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from orchestrator.options.places import FILE

Command = TypeVar("Command", bound=Callable[..., Any])


def audit_options(command: Command) -> Command:
    """Claims, and what holds where they say nothing."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.argument("file", required=False, type=FILE, metavar="[CLAIMS.yaml]"),
    click.option(
        "--claim",
        "phrases",
        multiple=True,
        metavar="TEXT",
        help="A claim in words, as '68.2 tok/s at tp4 bf16 concurrency 1'. Repeat.",
    ),
    click.option("--model", metavar="NAME|FOLDER", help="Of claims that name none."),
    click.option(
        "--gpu",
        metavar="NAME,NAME,...",
        help="Of claims that name none; of several the kindest to a claim counts.",
    ),
)
