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
import pyarrow as pa

from orchestrator.analysis.summary import MEASURED, Attempt, Building, measured
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.plan import models
from orchestrator.store.store import Store
from strategies import Load, Topology, plan_layout
from workers.messages import Built, EnginePlan, RankReport, Request, Work
from workers.records import REQUESTS, STEPS, RequestRow

INPUT_LEN, OUTPUT_LEN, CONCURRENCY, GPUS = 256, 128, 100, 2
TOKEN_S = 0.02
CELL = Cell(
    Deployment("llama-8b", "tp2", "torch", "bfloat16"),
    Scenario("short", INPUT_LEN, OUTPUT_LEN),
    CONCURRENCY,
)


def write_result(folder: Path, requests: int) -> None:
    """A completed run of `requests` under tp2, as `submit` keeps it."""
    store, run, table = Store(folder), Run(CELL, 0, 0), served(requests)
    store.create()
    store.update_manifest(experiment={"strategy": ["tp2"]})
    prompt = (0,) * INPUT_LEN
    attempt = Attempt(
        key=store.run_key(run),
        plan=engine_plan(),
        work=Work(tuple(Request(i, prompt, OUTPUT_LEN) for i in range(requests)), CONCURRENCY),
        input_len=INPUT_LEN,
        output_len=OUTPUT_LEN,
        started_at="2030-01-01T00:00:00+00:00",
        block=0,
        metadata="{}",
        levels={},
    )
    built = [Built(rank, 1.0, 1.0, 10**10, 10**6, "Test GPU") for rank in range(GPUS)]
    reports = [RankReport(rank, None, STEPS.make([]), None, 10**10) for rank in range(GPUS)]
    row = measured(attempt, Building(built, "cpu", build_s=1.0, startup_s=2.0), reports, table)
    kept = {"requests": table.drop_columns(["output_token_ids"])}
    store.write_run(run, MEASURED.make([row]), kept)


def served(requests: int) -> pa.Table:
    """Requests in batches of CONCURRENCY, a token of each every TOKEN_S."""
    gaps = np.random.default_rng(0).uniform(0.9 * TOKEN_S, 1.1 * TOKEN_S, (requests, OUTPUT_LEN))
    times = gaps.cumsum(axis=1)
    arrivals = [OUTPUT_LEN * TOKEN_S * (index // CONCURRENCY) for index in range(requests)]
    return REQUESTS.make(
        RequestRow(
            request_index=index,
            replica=0,
            input_len=INPUT_LEN,
            cached_tokens=0,
            output_len=OUTPUT_LEN,
            arrival_s=arrival,
            admitted_s=None,
            token_times_s=arrival + times[index],
            output_token_ids=None,
        )
        for index, arrival in enumerate(arrivals)
    )


def engine_plan() -> EnginePlan:
    """What the workers of CELL would be built from."""
    shape = models.resolve(CELL.deployment.model, "dummy").shape
    load = Load(INPUT_LEN, OUTPUT_LEN, CONCURRENCY)
    placement = plan_layout("tp2", shape, load, Topology.uniform(GPUS)).placement
    return EnginePlan(
        model=shape,
        layout="tp2",
        placement=placement,
        checkpoint=None,
        dtype="bfloat16",
        device="cuda",
        max_concurrency=CONCURRENCY,
        max_len=INPUT_LEN + OUTPUT_LEN,
        prefill_tokens=2048,
    )


def seconds(command: list[str]) -> float:
    """How long `command` takes. Raises CalledProcessError where it fails."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument(
        "--times", type=int, default=5, help="calls, after one that fills the file cache"
    )
    return parser.parse_args()


def main() -> None:
    asked = parse()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "result"
        write_result(folder, asked.requests)
        for flags in ([], ["--goodput", "ttft:1000"]):
            command = [sys.executable, "-m", "orchestrator", "compare", str(folder), *flags]
            seconds(command)
            took = [seconds(command) for _ in range(asked.times)]
            print(
                f"{' '.join(['compare', *flags])}, {asked.requests} requests of {OUTPUT_LEN} "
                f"tokens: median {statistics.median(took):.2f} s ({min(took):.2f} to "
                f"{max(took):.2f} s in {asked.times} calls)"
            )


if __name__ == "__main__":
    main()
