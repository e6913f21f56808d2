"""Optimizer steps of an 8B under every layout of two GPUs, in both engines, and what its techniques
change.

    python benchmarks/training_layouts.py --minutes 9
    python benchmarks/training_layouts.py --parts layouts fp8 --dry-run

Calls `orchestrator` only, and prints every call. Sequences of 4096 tokens, eight in a step, two at
once on a rank. The parts, each in a folder of its own below --result-dir:

    layouts     nothing is recomputed; layers are compiled where the engine can
    recomputed  the same with activation checkpointing, which leaves room for dp2 and ZeRO 1 and 2
    interleaved the pipeline with two stages a rank
    fp8         products in FP8
    techniques  fsdp2 without and with checkpointing, accumulation and compiled layers
    comm        fsdp2, tp2 and dp2 without their collectives, which the engine torch can leave out

Each layout is a call: one that does not fit is refused before a GPU is taken, with the arithmetic,
and left out. After --minutes the run in flight is finished, if it can be soon, and the rest is
left: exit status 3. The same call again goes on.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from all_layouts import ORCHESTRATOR, ran, run_all

LOAD = (
    *("--workload", "train", "--model", "llama-8b", "--load-format", "dummy", "--seq-len", "4096"),
    *("--global-batch-size", "8", "--micro-batch-size", "2"),
)
SHARDED, DEEPSPEED = ("fsdp2", "tp2", "pp2"), ("dp2zero3", "dp2zero2", "dp2zero1")
FUSED, RECOMPUTED = ("--fusion", "on"), ("--activation-checkpointing", "full")
ENDED_BADLY = "orchestrator ended with status 2"  # a refusal, and nothing was run


def main() -> int:
    """Run what is left. Returns the exit status."""
    asked = parse()
    status = run_all(commands(asked), asked, done)
    if not status and not asked.dry_run:
        subprocess.run([*ORCHESTRATOR, "compare", str(asked.result_dir)], check=False)
    return status


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=10, help="of a run")
    parser.add_argument("--starts", type=int, default=1, help="of each layout")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="default: no limit")
    parser.add_argument("--result-dir", type=Path, default=Path("results"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser.parse_args()


def commands(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The arguments of `orchestrator`, one call after the other."""
    for part in asked.parts:
        verb = "ablate" if part == "techniques" else "submit"
        for layout, options in PARTS[part]:
            where = ("--result-dir", str(asked.result_dir / part))
            often = ("--steps", str(asked.steps), "--num-starts", str(asked.starts))
            yield (verb, *LOAD, "--strategy", layout, *options, *often, *where)


PARTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "layouts": (
        *((layout, FUSED) for layout in (*SHARDED, "dp2")),
        *((layout, ()) for layout in DEEPSPEED),
    ),
    "recomputed": (
        *((layout, (*FUSED, *RECOMPUTED)) for layout in ("dp2", "fsdp2")),
        *((layout, RECOMPUTED) for layout in DEEPSPEED),
    ),
    "interleaved": (("pp2", (*FUSED, "--schedule", "interleaved")),),
    "fp8": tuple((layout, (*FUSED, "--precision", "fp8")) for layout in ("fsdp2", "tp2")),
    "techniques": (("fsdp2", ("--technique", "checkpointing,accumulation,fusion")),),
    "comm": (
        *((layout, (*FUSED, "--ablate", "comm")) for layout in ("fsdp2", "tp2")),
        ("dp2", (*FUSED, *RECOMPUTED, "--ablate", "comm")),
    ),
}


def done(command: Sequence[str], deadline: float) -> bool:
    """Whether it ended before the deadline; what is refused has. Ends this process where it fails
    in another way."""
    try:
        return ran(command, deadline)
    except SystemExit as failed:
        if str(failed) != ENDED_BADLY:
            raise
        return True


if __name__ == "__main__":
    raise SystemExit(main())
