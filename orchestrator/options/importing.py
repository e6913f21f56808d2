"""The options of `import`."""

from __future__ import annotations

import click

from orchestrator.options.places import PATH

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

EXPORT_OPTIONS = (
    click.option(
        "--format",
        "format_",
        metavar="FORMAT",
        help="Tables: parquet, csv, arrow. JSON a cell: vllm-bench, aiperf. [parquet]",
    ),
    click.option(
        "--save-detailed", is_flag=True, help="vllm-bench: with its lists, a value a request."
    ),
    click.option(
        "--track",
        type=click.Choice(["mlflow", "wandb", "tensorboard"]),
        help="Log the comparison's rows and the page to a tracker.",
    ),
    click.option("--out", type=PATH, metavar="DIR", help="[RESULT_DIR/export]"),
)
