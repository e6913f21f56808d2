"""The options of `--workload train`."""

from __future__ import annotations

import click

from orchestrator.options.places import PATH

# What says how a step is trained.
EXPLAINED_TRAINING = (
    click.option("--workload", metavar="KIND", help="generate, or train. [generate]"),
    click.option("--seq-len", type=int, metavar="TOKENS", help="train: of a sequence. [1024]"),
    click.option(
        "--global-batch-size",
        type=int,
        metavar="N",
        help="train: sequences of an optimizer step, over all replicas. [32]",
    ),
    click.option(
        "--micro-batch-size",
        type=int,
        metavar="N",
        help="train: sequences that a rank computes at once. [1]",
    ),
    click.option(
        "--gradient-accumulation-steps",
        type=int,
        metavar="N",
        help="train: micro-batches of a replica in a step, instead of their size.",
    ),
    click.option(
        "--schedule", metavar="KIND", help="train: of a pipeline: gpipe, 1f1b, interleaved. [1f1b]"
    ),
    click.option(
        "--activation-checkpointing",
        metavar="KIND",
        help="train: off, full, selective, cpu-offload. [off]",
    ),
    click.option(
        "--precision",
        metavar="KIND",
        help="train: fp32, bf16, fp16, fp8, fp8-fp16. [bf16 on GPUs, fp32 on CPUs]",
    ),
    click.option(
        "--offload",
        metavar="KIND",
        help="train: none, optimizer, optimizer+params: what is kept in main memory. [none]",
    ),
)
TRAINING_OPTIONS = (
    *EXPLAINED_TRAINING,
    click.option("--steps", type=int, metavar="N", help="train: optimizer steps of a run. [20]"),
    click.option(
        "--data", type=PATH, metavar="PATH", help="train: text, JSONL or Parquet. [random tokens]"
    ),
    click.option(
        "--save-checkpoint",
        type=PATH,
        metavar="DIR",
        help="train: keep the weights in DIR/DEPLOYMENT, as Transformers reads them.",
    ),
    click.option(
        "--checkpoint-interval",
        type=int,
        metavar="N",
        help="train: keep what a stopped run goes on from, every N steps. [never]",
    ),
    click.option(
        "--resume-from",
        type=PATH,
        metavar="DIR",
        help="train: begin with such a state, of any layout. [the first weights]",
    ),
    click.option(
        "--data-column", metavar="NAME", help="train: of a dataset, the one of the text. [text]"
    ),
)
