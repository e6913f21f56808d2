"""The options of `import`."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
IMPORT_OPTIONS = (
    click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE..."),
    click.option(
        "--strategy", metavar="LAYOUT", help="Layout of the runs, where FILE does not say."
    ),
    click.option("--model", metavar="NAME", help="Name of the model. [FILE's]"),
    click.option("--engine", metavar="NAME", help="What executed the layout. [FILE's backend]"),
    click.option("--dtype", metavar="DTYPE", help="Of weights and activations. [FILE's]"),
    click.option("--scenario", metavar="NAME", help="Name of the lengths. [as 256x128]"),
    click.option(
        "--result-dir", type=PATH, metavar="DIR", help="Where results are kept. [results]"
    ),
    click.option("--out", type=PATH, metavar="DIR", help="[RESULT_DIR/imported-FILE]"),
)
