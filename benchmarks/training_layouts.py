"""Optimizer steps of a model under every layout of two GPUs, in both engines, and what its
techniques change.

    python benchmarks/training_layouts.py --minutes 9
    python benchmarks/training_layouts.py --model llama-3b --micro-batch-size 1
    python benchmarks/training_layouts.py --parts layouts fp8 --dry-run

Calls `orchestrator` only, and prints every call. Sequences of 4096 tokens, eight in a step. Of an
8B every layout but dp2 fits on two H200 with two sequences at once; on two H100 it fits only with
checkpointing, and a 3B with one sequence at once fits under every layout without. The parts, each
in a folder of its own below --result-dir, which is for one model and size of micro-batch:

    layouts     nothing is recomputed; layers are compiled where the engine can
    recomputed  the same with activation checkpointing, which takes less memory
    interleaved the pipeline with two stages a rank
    fp8         products in FP8, which tensor parallelism does not have
    offload     moments and FP32 weights in main memory, which a 14B needs (qwen2.5-14b)
    techniques  fsdp2 without and with checkpointing, accumulation and compiled layers, and in other
                precisions and with offload
    comm        fsdp2, tp2 and dp2 without their collectives, which the engine torch can leave out

Each layout is a call. One that does not fit is refused before a GPU is taken, with the arithmetic,
and one that fails is said; both are left out, and exit status 1 tells of failures. After --minutes
the run in flight is finished, if it can be soon, and the rest is left: exit status 3. The same call
again goes on.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from all_layouts import ORCHESTRATOR, EndedBadly, ran, run_all

LOAD = (
    *("--workload", "train", "--load-format", "dummy", "--global-batch-size", "8"),
    *("--num-warmups", "1"),  # of a step; others are taken before the first run too
)
SHARDED, DEEPSPEED = ("fsdp2", "tp2", "pp2"), ("dp2zero3", "dp2zero2", "dp2zero1")
FUSED, RECOMPUTED = ("--fusion", "on"), ("--activation-checkpointing", "full")
OFFLOADED = ("--offload", "optimizer")
REFUSED, FAILED = 2, 1  # exit statuses: nothing was run; some runs failed
STATUSES = (REFUSED, FAILED, 70)  # of what ends by itself; 70 is a mistake of ours


def main() -> int:
    """Run what is left. Returns the exit status."""
    asked = parse()
    calls = Calls()
    status = run_all(commands(asked), asked, calls.done)
    if not asked.dry_run:
        for part in asked.parts:
            if (folder := asked.result_dir / part).is_dir():
                subprocess.run([*ORCHESTRATOR, "compare", str(folder)], check=False)
    return status or (FAILED if calls.failed else 0)


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--micro-batch-size", type=int, default=2, help="sequences at once")
    parser.add_argument("--seq-len", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=10, help="of a run")
    parser.add_argument("--starts", type=int, default=1, help="of each layout")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="default: no limit")
    parser.add_argument("--timeout", type=float, default=240, help="seconds of a run")
    parser.add_argument("--result-dir", type=Path, default=Path("results"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser.parse_args()


def commands(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The arguments of `orchestrator`, one call after the other."""
    fields = ("model", "micro_batch_size", "seq_len", "steps", "timeout")
    given = [(f"--{name.replace('_', '-')}", str(getattr(asked, name))) for name in fields]
    often = (*chain(*given), "--num-starts", str(asked.starts))
    for part in asked.parts:
        verb = "ablate" if part == "techniques" else "submit"
        for layout, options in PARTS[part]:
            where = ("--result-dir", str(asked.result_dir / part))
            yield (verb, *LOAD, "--strategy", layout, *options, *often, *where)


PARTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "layouts": (
        *((layout, FUSED) for layout in (*SHARDED, "dp2")),
        *((layout, ()) for layout in DEEPSPEED),
    ),
    "recomputed": (
        *((layout, (*FUSED, *RECOMPUTED)) for layout in (*SHARDED, "dp2")),
        *((layout, RECOMPUTED) for layout in DEEPSPEED),
    ),
    "interleaved": (("pp2", (*FUSED, "--schedule", "interleaved")),),
    "fp8": tuple((layout, (*FUSED, "--precision", "fp8")) for layout in ("fsdp2", "pp2", "dp2")),
    "offload": (
        ("dp2zero3", (*RECOMPUTED, *OFFLOADED)),
        ("fsdp2", (*FUSED, *RECOMPUTED, *OFFLOADED)),
    ),
    "techniques": (
        ("fsdp2", ("--technique", "checkpointing,accumulation,fusion")),
        ("fsdp2", (*FUSED, *RECOMPUTED, "--technique", "precision,offload")),
    ),
    "comm": (
        *((layout, (*FUSED, "--ablate", "comm")) for layout in ("fsdp2", "tp2")),
        ("dp2", (*FUSED, *RECOMPUTED, "--ablate", "comm")),
    ),
}


class Calls:
    """Calls of `orchestrator`. failed: whether one of them did not what it was to do."""

    def __init__(self) -> None:
        self.failed = False

    def done(self, command: Sequence[str], deadline: float) -> bool:
        """Whether it ended before the deadline; what is refused has, and what fails too. Ends this
        process where a signal stopped it."""
        try:
            return ran(command, deadline)
        except EndedBadly as ended:
            if ended.status not in STATUSES:
                raise
            self.failed |= ended.status != REFUSED
            return True


if __name__ == "__main__":
    raise SystemExit(main())
