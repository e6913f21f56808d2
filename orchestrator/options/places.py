"""What a command writes: a file or a folder of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Here(click.Path):
    """A path of this machine. A URI is refused: as a path it would be a folder called `s3:`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read it."""
        if isinstance(value, str) and "://" in value:
            self.fail(f"{value} is a URI, and this is written to a folder here", param, ctx)
        return Path(str(super().convert(value, param, ctx)))


FOLDER = Here(path_type=Path)
FILE = Here(path_type=Path, dir_okay=False)
