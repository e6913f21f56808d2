"""The options of commands that look for hardware and a layout."""

from __future__ import annotations

from functools import partial

import click

from orchestrator.options.places import PATH
from orchestrator.options.planning import (
    ARRIVAL_OPTIONS,
    CHUNK_OPTION,
    ENGINE_OPTION,
    LENGTH_OPTIONS,
    MODEL_OPTION,
    NODE_OPTIONS,
)
from orchestrator.options.precision import PRECISION_OPTIONS

SLO_OPTION = click.option(
    "--slo",
    multiple=True,
    metavar="LIMIT...",
    help="Limits in ms on medians, as in `ttft:2000 tpot:50`.",
)
concurrency_option = partial(click.option, "--concurrency", "--max-concurrency", "max_concurrency")
KINDS_OPTION = click.option(
    "--gpu",
    multiple=True,
    metavar="NAME",
    help="Kinds of GPU: h200, l40s ... Repeat, or use commas. [all whose figures suffice]",
)
MOST_OPTION = click.option(
    "--gpus-max",
    type=click.IntRange(min=1, max=4096),
    default=8,
    show_default=True,
    metavar="N",
    help="Most GPUs: 1, 2, 4 ... up to these are looked at.",
)
COST_OPTION = click.option(
    "--gpu-hour-cost",
    multiple=True,
    metavar="NAME=X",
    help="Of one GPU of a kind, as h200=4.0. Repeat, or use commas.",
)
CROSSOVER_OPTIONS = (
    MODEL_OPTION,
    KINDS_OPTION,
    concurrency_option(metavar="N,N,...", help="Requests in flight; an answer each. [8]"),
    ENGINE_OPTION,
    *LENGTH_OPTIONS,
    *PRECISION_OPTIONS,
    CHUNK_OPTION,
)
MATRIX_OPTIONS = (
    click.option(
        "--model",
        multiple=True,
        default=("llama-8b", "qwen2.5-32b", "llama-70b"),
        show_default=True,
        metavar="NAME|FOLDER",
        help="Presets or folders with a config.json. Repeat, or use commas.",
    ),
    click.option(
        "--scenario",
        multiple=True,
        default=("short", "long"),
        show_default=True,
        metavar="NAME",
        help="Lengths by name. Repeat, or use commas.",
    ),
    KINDS_OPTION,
    MOST_OPTION,
    *NODE_OPTIONS,
    concurrency_option(default="32", show_default=True, metavar="N", help="Requests in flight."),
    SLO_OPTION,
    ENGINE_OPTION,
    *PRECISION_OPTIONS,
    CHUNK_OPTION,
    click.option(
        "--out",
        type=PATH,
        metavar="DIR",
        help="Also write selection.arrow, crossover.arrow and selection.html there.",
    ),
)
RECOMMEND_OPTIONS = (
    MODEL_OPTION,
    SLO_OPTION,
    concurrency_option(
        metavar="N", help="Requests in flight, in an open loop at most. [8; open loop: 256]"
    ),
    *ARRIVAL_OPTIONS,
    KINDS_OPTION,
    MOST_OPTION,
    *NODE_OPTIONS,
    COST_OPTION,
    ENGINE_OPTION,
    *LENGTH_OPTIONS,
    *PRECISION_OPTIONS,
    CHUNK_OPTION,
)
