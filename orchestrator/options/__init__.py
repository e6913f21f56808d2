"""What the command line takes: click's part of `orchestrator.cli`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import click

from orchestrator.options.comparing import COMPARE_OPTIONS
from orchestrator.options.dataset import DATASET_OPTIONS, RATE_OPTIONS
from orchestrator.options.places import PATH
from orchestrator.options.planning import EXPLAIN_OPTIONS, MACHINE_OPTIONS, PLAN_OPTIONS
from orchestrator.options.precision import PRECISION_OPTIONS
from orchestrator.options.switches import SWITCH_OPTIONS
from orchestrator.options.training import TRAINING_OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])


EXPERIMENT_OPTIONS = (
    click.option(
        "--strategy",
        multiple=True,
        metavar="LAYOUT",
        help="tp4, pp4, dp4, tp2pp2 ... Repeat, or use commas. [tp1]",
    ),
    click.option(
        "--model",
        metavar="NAME|FOLDER",
        help="A preset (tiny, llama-70b ...) or a Hugging Face folder. [tiny]",
    ),
    click.option(
        "--engine",
        multiple=True,
        metavar="NAME",
        help="What executes the layouts; see `orchestrator strategies`. Repeat, or use commas: "
        "engines take turns. [torch]",
    ),
    click.option(
        "--engine-arg",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the engine's own, as vLLM's gpu_memory_utilization=0.8. Repeat.",
    ),
    click.option(
        "--scenario",
        multiple=True,
        metavar="NAME",
        help="Lengths by name: short (256/128), long (1024/512). [short]",
    ),
    click.option(
        "--input-len",
        metavar="TOKENS",
        help="Prompt length, instead of a scenario: 512, 256:1024 or normal(512,128).",
    ),
    click.option(
        "--output-len", metavar="TOKENS", help="Output length, likewise; a dataset's default."
    ),
    click.option(
        "--range-ratio",
        type=float,
        metavar="R",
        help="Lengths uniform from (1 - R) to (1 + R) of these. [0]",
    ),
    click.option(
        "--max-concurrency", metavar="N,N,...", help="Requests in flight; one cell each. [8]"
    ),
    click.option(
        "--num-starts",
        type=int,
        metavar="N",
        help="Fresh groups of workers for each layout, which take turns. [1]",
    ),
    click.option("--num-runs", type=int, metavar="N", help="Runs of each cell inside a start. [1]"),
    click.option(
        "--until-ci",
        type=float,
        metavar="SHARE",
        help="Add starts until half the 95% interval is within it, as 0.05.",
    ),
    click.option("--max-starts", type=int, metavar="N", help="Most starts under --until-ci. [10]"),
    click.option(
        "--difference",
        type=float,
        metavar="SHARE",
        help="The smallest difference between layouts that matters. [0.02]",
    ),
    click.option(
        "--num-warmups",
        type=int,
        metavar="N",
        help="Unrecorded runs before a cell's first with fresh workers. [3]",
    ),
    click.option(
        "--min-duration",
        type=float,
        metavar="SECONDS",
        help="Least length of a run: pilots settle one --num-prompts for all layouts.",
    ),
    *RATE_OPTIONS,
    click.option(
        "--num-prompts",
        type=int,
        metavar="N",
        help="Requests of a run, or conversations. [max-concurrency; all of a dataset]",
    ),
    click.option("--seed", type=int, help="Of prompts, arrivals and sampling. [0]"),
    click.option(
        "--ignore-eos/--no-ignore-eos",
        default=None,
        help="Do not stop at the end token. [yes; for texts of a dataset no, unless --multi-turn]",
    ),
    click.option("--temperature", type=float, help="0 is greedy. [0]"),
    *PRECISION_OPTIONS,
    click.option(
        "--load-format",
        metavar="FORMAT",
        help="auto (a checkpoint) or dummy (weights from a formula). [auto]",
    ),
    click.option(
        "--device", metavar="DEVICE", help="auto, cuda or cpu. [auto: GPUs if there are any]"
    ),
    *DATASET_OPTIONS,
    click.option(
        "--save-detailed", is_flag=True, default=None, help="Keep every output's tokens and text."
    ),
    click.option(
        "--save-spans",
        is_flag=True,
        default=None,
        help="Keep every span of the first start's observed runs.",
    ),
    *SWITCH_OPTIONS,
    *TRAINING_OPTIONS,
    click.option(
        "--ablate",
        multiple=True,
        metavar="WHAT",
        help="Run layouts again without: comm (collectives), p2p (NVLink).",
    ),
    click.option(
        "--nsys",
        is_flag=True,
        default=None,
        help="Run the workers under Nsight Systems; reports go to RESULTS/nsys.",
    ),
    click.option(
        "--ncu",
        is_flag=True,
        default=None,
        help="Count the kernels of a decode step of each cell with Nsight Compute, after it.",
    ),
    click.option(
        "--goodput",
        multiple=True,
        metavar="LEVEL...",
        help="Service levels in ms, as in `ttft:2000 tpot:200`.",
    ),
    click.option(
        "--slo",
        multiple=True,
        metavar="LIMIT...",
        help="Limits in ms on percentiles of a run, as in `ttft:p99:2000 tpot:p95:50`.",
    ),
    click.option(
        "--find-rate",
        is_flag=True,
        default=None,
        help="Search the highest request rate at which each layout meets the --slo.",
    ),
    click.option(
        "--rate-runs", type=int, metavar="N", help="Most rates that --find-rate tries. [8]"
    ),
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="Of a build, of a run and of a collective. [600]",
    ),
    click.option(
        "--wait-for-resources",
        metavar="TIME",
        help="For devices that others of the cluster hold, as 10m. [30s]",
    ),
    click.option(
        "--on-node-loss",
        type=click.Choice(["retry", "skip"]),
        help="A run that loses a node: made again, or left to the next command. [skip]",
    ),
    click.option(
        "--result-dir",
        metavar="DIR|URI",
        help="Where results are kept; s3://BUCKET/NAME and gs://BUCKET/NAME too. [results]",
    ),
    click.option(
        "--metadata", multiple=True, metavar="KEY=VALUE", help="Kept with the results. Repeat."
    ),
    click.option(
        "--address",
        metavar="HOST:PORT|URL",
        help="A Ray cluster that is running; http://HOST:8265: as a job there. [RAY_ADDRESS, else "
        "a local one]",
    ),
    click.option(
        "--fabric", type=PATH, metavar="FILE", help="What `calibrate` wrote. [this host's, if any]"
    ),
    click.option(
        "--allow-other-node",
        is_flag=True,
        default=None,
        help="Add to results of other GPUs, or of another CPU; starts pair within a node.",
    ),
)


OF_ASKING = (
    click.option("--config", type=PATH, metavar="FILE", help="The same fields in YAML; flags win."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print cells and placements and whether they fit; take nothing.",
    ),
    click.option(
        "--no-wait", is_flag=True, help="With --address http://...: leave when the job is there."
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Begin a new folder; the results of the old one are kept in RESULT_DIR/replaced.",
    ),
    click.option(
        "--all", "show_all", is_flag=True, help="Show cells that earlier commands asked for, too."
    ),
)


def asking_options(command: Command) -> Command:
    """Every field of an experiment as an option, one that is not given being None or (); a file of
    them, and the flags of the command."""
    return _with((*EXPERIMENT_OPTIONS, *OF_ASKING), command)


def explain_options(command: Command) -> Command:
    """What is explained, and on what."""
    return _with(EXPLAIN_OPTIONS, command)


def plan_options(command: Command) -> Command:
    """What may be asked of a plan."""
    return _with(PLAN_OPTIONS, command)


def machine_options(command: Command) -> Command:
    """GPUs that need not be here."""
    return _with(MACHINE_OPTIONS, command)


def compare_options(command: Command) -> Command:
    """What may be asked of a comparison of results."""
    return _with(COMPARE_OPTIONS, command)


def taking(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """A decorator that gives a command these options."""
    return partial(_with, options)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of tables."
)
