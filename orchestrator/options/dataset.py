"""The options that are about a dataset, and about when requests arrive."""

from __future__ import annotations

import click

from orchestrator.options.places import PATH

DATASET_OPTIONS = (
    click.option(
        "--dataset-path",
        type=PATH,
        metavar="FILE|FOLDER",
        help="Prompts, conversations or a trace; docs/datasets.md has the formats.",
    ),
    click.option(
        "--dataset-format", metavar="NAME", help="Of the dataset. [auto: by the fields of its rows]"
    ),
    click.option(
        "--dataset-columns",
        multiple=True,
        metavar="FIELD=COLUMN,...",
        help="Columns to read, as in prompt=question,output_len=max_tokens.",
    ),
    click.option(
        "--multi-turn",
        is_flag=True,
        default=None,
        help="Whole conversations, each turn after the reply before it. [the first exchange]",
    ),
    click.option("--dataset-split", metavar="NAME", help="Of a folder. [the only one]"),
    click.option(
        "--skip-invalid",
        is_flag=True,
        default=None,
        help="Leave out and count rows that cannot run. [refuse the dataset]",
    ),
    click.option(
        "--trace-speed", type=float, metavar="X", help="How much faster requests arrive. [1]"
    ),
    click.option(
        "--trace-window",
        metavar="TIME",
        help="Part of a trace: 60s, its first minute, or 10m:11m. [all]",
    ),
)
RATE_OPTIONS = (
    click.option(
        "--request-rate",
        type=float,
        metavar="R",
        help="Requests, or conversations, arriving a second: an open loop. [closed loop]",
    ),
    click.option(
        "--burstiness",
        type=float,
        metavar="SHAPE",
        help="Of the gaps between arrivals (gamma): 1 is Poisson. [1]",
    ),
)
