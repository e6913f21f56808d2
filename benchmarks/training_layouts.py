"""Optimizer steps of a model under every layout of two GPUs, in both engines, and what its
techniques change; or on one GPU.

    python benchmarks/training_layouts.py --minutes 9
    python benchmarks/training_layouts.py --model llama-3b --micro-batch-size 1
    python benchmarks/training_layouts.py --parts layouts fp8 --dry-run
    python benchmarks/training_layouts.py --gpus 1 --global-batch-size 4 --steps 5 --minutes 6

Calls `orchestrator` only, and prints every call. Sequences of 4096 tokens, eight in a step. Of an
8B every layout but dp2 and dp2zero1 fits on two H200 with two sequences at once; on two H100 it
fits only with checkpointing, and a 3B with one sequence at once fits under every layout without.
One GPU trains that 3B. All results are in --result-dir, and a part trains nothing again that
another one has trained. The parts:

    layouts     nothing is recomputed; layers are compiled where the engine can
    recomputed  the same with activation checkpointing, which takes less memory
    interleaved the pipeline with two stages a rank
    fp8         products in FP8, which tensor parallelism does not have
    offload     moments and FP32 weights in main memory, which a 14B needs (qwen2.5-14b)
    techniques  fsdp2 without and with checkpointing, accumulation and compiled layers, and in other
                precisions and with offload
    comm        all layouts but pipelines without their collectives

On one GPU there are four, in the order in which their answers are of use:

    techniques  FP8, compiled layers and checkpointing; then accumulation and offload, where layers
                are recomputed
    layouts     the engines torch and deepspeed, beside each other
    offload     of DeepSpeed: moments, FP32 weights and gradients in main memory, then weights too
    others      FP16, FP8 beside it, and checkpointing in main memory

Each layout is a call. One that does not fit is refused before a GPU is taken, with the arithmetic,
and one that fails is said; both are left out, and exit status 1 tells of failures. After --minutes
the run in flight is finished, if it can be soon, and the rest is left: exit status 3. The same call
again goes on.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from all_layouts import ORCHESTRATOR, EndedBadly, ran, run_all

Parts = Mapping[str, Sequence[tuple[str, Sequence[str]]]]  # part -> (layout, options) of each call

LOAD = (
    *("--workload", "train", "--load-format", "dummy"),
    *("--num-warmups", "1"),  # of a step; others are taken before the first run too
)
DEFAULTS = {1: ("llama-3b", 1), 2: ("llama-8b", 2)}  # GPUs -> model, sequences at once
SHARDED, DEEPSPEED = ("fsdp2", "tp2", "pp2"), ("dp2zero3", "dp2zero2", "dp2zero1")
FUSED, RECOMPUTED = ("--fusion", "on"), ("--activation-checkpointing", "full")
OFFLOADED = ("--offload", "optimizer")
KEPT_LESS = "checkpointing=full,checkpointing=selective"
OTHERS = "precision=fp16,precision=fp8-fp16,checkpointing=cpu-offload"
TWO_AT_ONCE = ("--micro-batch-size", "2")
REFUSED, FAILED = 2, 1  # exit statuses: nothing was run; some runs failed
STATUSES = (REFUSED, FAILED, 70)  # of what ends by itself; 70 is a mistake of ours


def main() -> int:
    """Run what is left. Returns the exit status."""
    asked = parse()
    calls = Calls()
    status = run_all(commands(asked), asked, calls.done)
    if not asked.dry_run:
        subprocess.run([*ORCHESTRATOR, "compare", str(asked.result_dir)], check=False)
    return status or (FAILED if calls.failed else 0)


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, choices=sorted(PARTS), default=2)
    every = list(dict.fromkeys(chain(*PARTS.values())))
    parser.add_argument("--parts", nargs="+", choices=every, help="default: all of the GPUs")
    parser.add_argument("--model", help="default: llama-8b, on one GPU llama-3b")
    parser.add_argument("--micro-batch-size", type=int, help="sequences at once; default: 2, or 1")
    parser.add_argument("--global-batch-size", type=int, default=8, help="sequences of a step")
    parser.add_argument("--seq-len", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=10, help="of a run")
    parser.add_argument("--starts", type=int, default=1, help="of each layout")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="default: no limit")
    parser.add_argument("--timeout", type=float, default=240, help="seconds of a run")
    parser.add_argument("--result-dir", type=Path, default=Path("results"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    asked = parser.parse_args()
    model, micro_batch_size = DEFAULTS[asked.gpus]
    asked.model = asked.model or model
    asked.micro_batch_size = asked.micro_batch_size or micro_batch_size
    asked.parts = asked.parts or list(PARTS[asked.gpus])
    if missing := set(asked.parts) - set(PARTS[asked.gpus]):
        known = ", ".join(PARTS[asked.gpus])
        parser.error(f"--gpus {asked.gpus} has no {', '.join(sorted(missing))}; it has {known}")
    return asked


def commands(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The arguments of `orchestrator`, one call after the other."""
    fields = ("model", "global_batch_size", "micro_batch_size", "seq_len", "steps", "timeout")
    given = [(f"--{name.replace('_', '-')}", str(getattr(asked, name))) for name in fields]
    often = (*chain(*given), "--num-starts", str(asked.starts))
    where = ("--result-dir", str(asked.result_dir))
    for layout, options in chain(*(PARTS[asked.gpus][part] for part in asked.parts)):
        verb = "ablate" if "--technique" in options else "submit"
        # The options of a call come last, and so before what holds for all of them.
        yield (verb, *LOAD, "--strategy", layout, *often, *where, *options)


ON_ONE: Parts = {
    "techniques": (
        ("tp1", (*FUSED, "--technique", f"precision=fp8,fusion,{KEPT_LESS}")),
        # Of two sequences at once accumulation has more, and fewer.
        (
            "tp1",
            (*FUSED, *RECOMPUTED, *TWO_AT_ONCE, "--technique", "accumulation,offload=optimizer"),
        ),
    ),
    "layouts": (("tp1", FUSED), ("tp1", ("--engine", "deepspeed"))),
    "offload": (
        ("zero2", (*RECOMPUTED, *OFFLOADED)),
        ("zero3", (*RECOMPUTED, *OFFLOADED)),
        ("zero3", (*RECOMPUTED, "--offload", "optimizer+params")),
    ),
    "others": (("tp1", (*FUSED, "--technique", OTHERS)),),
}
ON_TWO: Parts = {
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
        *((layout, ("--ablate", "comm")) for layout in ("dp2zero3", "dp2zero2")),
        ("dp2zero1", (*RECOMPUTED, "--ablate", "comm")),
    ),
}
PARTS = {1: ON_ONE, 2: ON_TWO}


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
