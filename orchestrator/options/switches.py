"""The options that say how an engine does what can be done in several ways."""

from __future__ import annotations

import click

FUSION = click.option(
    "--fusion",
    metavar="on|off",
    help="One kernel for several small operations; train: layers are compiled. [on, on GPUs; "
    "train: of the update alone]",
)
SWITCH_OPTIONS = (
    click.option(
        "--attention",
        metavar="KIND",
        help="eager, sdpa, triton, fa3, fa3-prefill or flashinfer; train, on GPUs: cudnn or flash. "
        "[auto: triton on GPUs, sdpa on CPUs; train: cudnn]",
    ),
    click.option("--cuda-graphs", metavar="on|off", help="Capture steps in graphs. [on, on GPUs]"),
    FUSION,
    click.option(
        "--chunked-prefill-size",
        metavar="N|off",
        help="Prompt tokens of a forward pass, to which prompts are cut; off: they go whole. "
        "[2048; vllm: its own]",
    ),
    click.option(
        "--batching",
        metavar="KIND",
        help="continuous, or static: a batch begins when the one before has ended. [continuous]",
    ),
    click.option(
        "--allreduce",
        metavar="KIND",
        help="What sums over tp: one-shot, two-shot, nccl; shm or gloo. [auto: over NVLink "
        "one-shot of two ranks, two-shot of more; else nccl; shm on CPUs]",
    ),
    click.option(
        "--overlap",
        metavar="on|off",
        help="Sum one half of a large pass over tp while the other computes. [off]",
    ),
    click.option(
        "--products",
        metavar="KIND",
        help="What multiplies few rows by a matrix: triton, cublas. [triton, on Hopper; else "
        "cublas]",
    ),
    click.option(
        "--pdl",
        metavar="on|off",
        help="Launch a kernel before the one before it has ended. [on, on Hopper]",
    ),
)
technique_option = click.option(
    "--technique",
    multiple=True,
    metavar="NAME,NAME,...",
    help="attention, batching, chunking, fusion, graphs, allreduce, overlap, products, pdl, "
    "quantization, kv-cache; train: checkpointing, accumulation, fusion, precision, offload, comm. "
    "Or one value of training, as precision=fp8. [all that change anything]",
)
