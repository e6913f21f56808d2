"""What a command reads or writes: a file or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Named(click.Path):
    """A path, which has a name; as `takes_uris` says, also one that is a URI."""

    takes_uris = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read it."""
        from orchestrator.experiment.places import fault_of

        if isinstance(value, str) and (fault := fault_of(value, self.takes_uris)):
            self.fail(fault, param, ctx)
        return Path(str(super().convert(value, param, ctx)))


class Here(Named):
    """A path of this machine."""

    takes_uris = False


PATH = Here(path_type=Path)
FILE = Here(path_type=Path, dir_okay=False)
