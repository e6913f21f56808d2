"""The options of `calibrate` and `doctor`."""

from __future__ import annotations

import click

from orchestrator.options.places import PATH

CALIBRATE_OPTIONS = (
    click.option(
        "--device", default="auto", show_default=True, type=click.Choice(["auto", "cuda", "cpu"])
    ),
    click.option(
        "--ranks",
        type=click.IntRange(min=1, max=4096),
        metavar="N",
        help="GPUs or CPU workers. [all GPUs of a node; 2 to 4 workers]",
    ),
    click.option("--out", type=PATH, metavar="DIR", help="[results/fabric-HOST]"),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="A Ray cluster that is running. [RAY_ADDRESS, else a local one]",
    ),
    click.option(
        "--quick", is_flag=True, hidden=True, help="A few small sizes: to see that it works."
    ),
)
DOCTOR_OPTIONS = (
    click.option(
        "--address", metavar="HOST:PORT", help="A Ray cluster that should answer. [RAY_ADDRESS]"
    ),
)
