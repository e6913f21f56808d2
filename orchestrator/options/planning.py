"""The options of `explain` and `plan`, and those of GPUs that need not be here."""

from __future__ import annotations

import click

from orchestrator.options.comparing import Finite
from orchestrator.options.dataset import DATASET_OPTIONS, RATE_OPTIONS
from orchestrator.options.places import PATH
from orchestrator.options.precision import FP8_OPTIONS, PRECISION_OPTIONS
from orchestrator.options.switches import FUSION
from orchestrator.options.training import EXPLAINED_TRAINING

EXPLAIN_OPTIONS = (
    click.option(
        "--model",
        default="tiny",
        show_default=True,
        metavar="NAME|FOLDER",
        help="A preset or a folder with a config.json.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Of activations and what is not FP8. [bfloat16]",
    ),
    *FP8_OPTIONS,
    click.option("--memory", metavar="141GB", help="Memory of one GPU. [what is here]"),
    click.option(
        "--batch",
        type=click.IntRange(min=1, max=65536),
        help="Requests in the decode step shown. [1]",
    ),
    click.option(
        "--chunked-prefill-size",
        type=click.IntRange(min=1, max=10_000_000),
        metavar="N",
        help="Most prompt tokens in one forward pass.",
    ),
    click.option(
        "--gpus-per-node",
        type=click.IntRange(min=1, max=4096),
        metavar="N",
        help="Show the node of each rank, if so many GPUs share one.",
    ),
    *EXPLAINED_TRAINING,
    FUSION,
)
NODE_OPTIONS = (
    click.option(
        "--gpus-per-node",
        type=click.IntRange(min=1, max=4096),
        metavar="N",
        help="How many share a node. [8; GB200: 72]",
    ),
    click.option(
        "--network",
        type=Finite(min=0, min_open=True, max=1e6),
        metavar="GB/S",
        help="Of a GPU's network card, in one direction. [of the maker's own server]",
    ),
)
MACHINE_OPTIONS = (
    click.option("--gpu", metavar="NAME", help="Kind of GPU: h200, l40s ... It need not be here."),
    click.option(
        "--gpus", type=click.IntRange(min=1, max=4096), metavar="N", help="How many of them."
    ),
    *NODE_OPTIONS,
    click.option(
        "--gpu-hour-cost",
        type=Finite(min=0, min_open=True, max=1e6),
        metavar="X",
        help="Of one GPU: the cost of tokens is shown too.",
    ),
    click.option(
        "--failure-rate",
        type=Finite(min=0, max=1),
        metavar="X",
        help="Failures of a GPU and hour, for goodput over several nodes. [1.97e-05: Llama 3]",
    ),
    click.option(
        "--recovery",
        type=Finite(min=0, max=1e6),
        metavar="SECONDS",
        help="Until a replica serves again after a failure. [600]",
    ),
    click.option(
        "--straggler",
        type=Finite(min=0, max=1),
        metavar="SHARE",
        help="By how much equal GPUs differ in pace, a standard deviation. [0.01]",
    ),
)
MODEL_OPTION = click.option(
    "--model", metavar="NAME|FOLDER", help="A preset or a folder with a config.json. [tiny]"
)
ENGINE_OPTION = click.option(
    "--engine", multiple=True, metavar="NAME", help="torch or vllm. [torch]"
)
LENGTH_OPTIONS = (
    click.option(
        "--scenario",
        multiple=True,
        metavar="NAME",
        help="short (256/128), long (1024/512). [short]",
    ),
    click.option("--input-len", metavar="TOKENS", help="Prompt length, instead of a scenario."),
    click.option("--output-len", metavar="TOKENS", help="Output length, likewise."),
)
CHUNK_OPTION = click.option(
    "--chunked-prefill-size",
    metavar="N|off",
    help="Prompt tokens of a forward pass. [torch: 2048; vllm: 8192]",
)
ARRIVAL_OPTIONS = (
    *RATE_OPTIONS,
    click.option(
        "--num-prompts",
        type=int,
        metavar="N",
        help="Requests in all. [max-concurrency; open loop: 300, or those of the trace]",
    ),
    *DATASET_OPTIONS,
)
PLAN_OPTIONS = (
    MODEL_OPTION,
    *MACHINE_OPTIONS,
    click.option(
        "--strategy",
        multiple=True,
        metavar="LAYOUT",
        help="tp4, tp2pp2 ... Repeat, or use commas. [every tp x pp x dp of the GPUs]",
    ),
    ENGINE_OPTION,
    *LENGTH_OPTIONS,
    click.option(
        "--max-concurrency",
        metavar="N,N,...",
        help="Requests in flight, in an open loop at most; a ranking each. [8; open loop: 256]",
    ),
    *ARRIVAL_OPTIONS,
    *PRECISION_OPTIONS,
    CHUNK_OPTION,
    click.option(
        "--fabric",
        type=PATH,
        metavar="FILE",
        help="What `calibrate` wrote of such GPUs. [what is known of them]",
    ),
)
