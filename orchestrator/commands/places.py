"""Where results are that a command reads: a folder, or a URI, of which it gets a copy."""

from __future__ import annotations

import tempfile
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.report.output import Output, say

FILE = "file:"


def is_uri(text: str) -> bool:
    """Whether it is written as a URI."""
    from orchestrator.experiment.places import is_uri

    return is_uri(text)


def fetch(uri: str, into: Path, out: Output) -> None:
    """Bring the results at a URI to a folder of that name in `into`. Raises UserError where it is
    there already, or there are no results."""
    if uri.startswith(FILE):
        raise UserError(f"{uri} is a folder here already; every command reads it")
    target = into / uri.rstrip("/").rpartition("/")[2]
    if target.exists():
        raise UserError(f"{target} is there already; give another --out, or move it away")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as halfway:
        downloaded(uri, Path(halfway)).rename(target)
    out.show(lambda: {"results": str(target)}, lambda console: say(target))


def downloaded(uri: str, root: Path) -> Path:
    """A copy of the results at a URI, under `root`, or the folder here that it names. Raises
    UserError where there are none, or their store cannot be reached."""
    from orchestrator.experiment.places import folder_of_uri
    from orchestrator.store.spool import download

    try:
        return folder_of_uri(uri) if uri.startswith(FILE) else download(uri, root)
    except ValueError as error:
        raise UserError(str(error)) from error


def beside(folder: Path, name: str) -> Path:
    """Where a command writes what it makes of results, unless it is said: in their folder. Raises
    UserError for results at a URI."""
    from orchestrator.experiment.places import uri_of

    if uri := uri_of(folder):
        raise UserError(
            f"what is made of {uri} is written to a folder here: give --out, or bring the results "
            f"here first with `orchestrator fetch {uri}`"
        )
    return folder / name
