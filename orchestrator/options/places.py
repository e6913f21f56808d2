"""What a command reads or writes: a file or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Named(click.Path):
    """A path. One without a name is refused: it would be the folder that the user is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read it."""
        if isinstance(value, str) and not value.strip():
            self.fail("it is blank; name a file or a folder, the one you are in as '.'", param, ctx)
        return Path(str(super().convert(value, param, ctx)))


class Here(Named):
    """A path of this machine. A URI is refused: as a path it would be a folder called `s3:`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read it."""
        if isinstance(value, str) and "://" in value:
            self.fail(f"{value} is a URI; give a file or a folder of this machine", param, ctx)
        return super().convert(value, param, ctx)


PATH = Here(path_type=Path)
FILE = Here(path_type=Path, dir_okay=False)
