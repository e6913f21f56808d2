"""What it costs a decode step to see that every logit is finite.

    python benchmarks/finite_check_cost.py --model qwen2.5-32b --strategy tp2

The sampler of one rank, with and without the check, each as a CUDA graph of CALLS calls; the two
take turns. The share is of the least time that a step of the layout can take: the weights of the
rank, read once at the bandwidth of the data sheet. A real step is longer, so its share is smaller.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from orchestrator.node.datasheet import sheet
from orchestrator.plan import planning
from strategies.memory import weight_bytes
from strategies.precision import Precision
from workers.engines.native.sampling import Sampler

CALLS, ROUNDS = 20, 50
ROWS = (1, 32, 100)
BYTES = 2  # of a logit, in bfloat16


def main() -> None:
    """Print a line for every number of rows of logits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2.5-32b")
    parser.add_argument("--strategy", default="tp2")
    asked = parser.parse_args()
    name = torch.cuda.get_device_name()
    found = sheet(name)
    if found is None or found.hbm is None:
        raise SystemExit(f"the memory bandwidth of {name} is not known")
    layout, shape = planning.sketch(asked.strategy, asked.model)
    held = weight_bytes(layout.placement, shape, 0, Precision("bfloat16"))
    least_us = held / found.hbm / 1e3
    width = shape.vocab_size // layout.placement.degree("tp")
    print(f"{asked.model} {asked.strategy} on {name}: a step takes at least {least_us:.0f} us")
    for rows in ROWS:
        cost = cost_us(rows, width)
        print(f"{rows:4d} x {width} logits: {cost:.1f} us, {cost / least_us:.2%} of a step at most")


def cost_us(rows: int, width: int) -> float:
    """Microseconds that the check adds to sampling from [rows, width] logits: the median of ROUNDS
    differences."""
    logits = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    checked, unchecked = (captured(logits, checks) for checks in (True, False))
    return median(call_us(checked) - call_us(unchecked) for _ in range(ROUNDS))


def captured(logits: Tensor, checks: bool) -> torch.cuda.CUDAGraph:
    """A graph of CALLS calls of the sampler."""
    places = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    # A vocabulary that is not cut needs no communicator.
    sampler = Sampler(cast(Any, None), 0, None, 0.0, 0, checks)
    sampler(logits, places, places)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            sampler(logits, places, places)
    graph.replay()
    return graph


def call_us(graph: torch.cuda.CUDAGraph) -> float:
    """Microseconds a call of one replay."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / CALLS


if __name__ == "__main__":
    with torch.inference_mode():
        main()
