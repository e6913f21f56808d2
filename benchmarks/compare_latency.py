"""How long `orchestrator compare` takes to open a result of many requests: from the shell's point
of view, Python's start included.

    python benchmarks/compare_latency.py
    python benchmarks/compare_latency.py --requests 10000 --times 7

Writes a result of one run in a temporary folder, as `submit` leaves it, and prints the median of
several calls of `compare`: plain, and with service levels, for which alone it has to read the
requests.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from orchestrator.analysis import metrics
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.results import Store
from workers.records import REQUESTS, to_table

INPUT_LEN, OUTPUT_LEN, CONCURRENCY, GPUS = 256, 128, 100, 2
TOKEN_S = 0.02


def write_result(folder: Path, requests: int) -> None:
    """A completed run of `requests` under tp2: batches of CONCURRENCY, a token of each every
    TOKEN_S."""
    store = Store(folder)
    store.create()
    store.update_manifest(experiment={"strategy": ["tp2"]})
    gaps = (
        np.random.default_rng(0)
        .uniform(0.9 * TOKEN_S, 1.1 * TOKEN_S, (requests, OUTPUT_LEN))
        .cumsum(axis=1)
    )
    arrivals = [OUTPUT_LEN * TOKEN_S * (index // CONCURRENCY) for index in range(requests)]
    common = {"replica": 0, "input_len": INPUT_LEN, "output_len": OUTPUT_LEN}
    rows = [
        {
            **common,
            "request_index": index,
            "arrival_s": arrival,
            "token_times_s": arrival + gaps[index],
        }
        for index, arrival in enumerate(arrivals)
    ]
    table = to_table(rows, REQUESTS)
    figures = metrics.of_requests(table, CONCURRENCY, requests, GPUS)
    summary = {**figures, "status": metrics.COMPLETED, "num_gpus": GPUS, "num_prompts": requests}
    cell = Cell(
        Deployment("llama-8b", "tp2", "torch", "bfloat16"),
        Scenario("short", INPUT_LEN, OUTPUT_LEN),
        CONCURRENCY,
    )
    store.write_run(Run(cell, 0), summary, {"requests": table.drop_columns(["output_token_ids"])})


def seconds(command: list[str]) -> float:
    """How long `command` takes. Raises CalledProcessError where it fails."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument(
        "--times", type=int, default=5, help="calls, after one that fills the file cache"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "result"
        write_result(folder, asked.requests)
        for flags in ([], ["--goodput", "ttft:1000"]):
            command = [sys.executable, "-m", "orchestrator.cli", "compare", str(folder), *flags]
            seconds(command)
            took = [seconds(command) for _ in range(asked.times)]
            what = " ".join(["compare", *flags])
            spread = f"{min(took):.2f} to {max(took):.2f} s in {asked.times} calls"
            print(
                f"{what}, {asked.requests} requests of {OUTPUT_LEN} tokens: median "
                f"{statistics.median(took):.2f} s ({spread})"
            )


if __name__ == "__main__":
    main()
