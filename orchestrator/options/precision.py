"""The options of `submit` and `explain` that say in what numbers are kept."""

from __future__ import annotations

import click

FP8_OPTIONS = (
    click.option(
        "--quantization",
        metavar="NAME",
        help="Of weights: auto (as stored), none or fp8 (e4m3, made at loading). [auto]",
    ),
    click.option(
        "--kv-cache-dtype", metavar="DTYPE", help="auto (as activations) or fp8 (e4m3). [auto]"
    ),
    click.option(
        "--precision-policy",
        metavar="POLICY",
        help="uniform; fp8-prefill or fp8-decode: the other phase in --dtype, both kept. [uniform]",
    ),
)
PRECISION_OPTIONS = (
    click.option(
        "--dtype",
        metavar="DTYPE",
        help="auto, float32, bfloat16 or float16. [auto: bfloat16 on GPU, float32 on CPU]",
    ),
    *FP8_OPTIONS,
)
