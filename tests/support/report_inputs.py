"""A folder of made-up results, as the driver would leave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from orchestrator.store.results import Store

from orchestrator.analysis.accounting import PARTS, PARTS_FIELDS, SHARE_COLUMNS, TIMED
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from workers.records import REQUESTS, SPANS, STEPS, TELEMETRY, table_schema, to_table

SHARES = {
    "compute": 80.0,
    "exposed_transfer": 9.0,
    "exposed_wait": 5.0,
    "bubble": 2.0,
    "launch_gap": 4.0,
}
GIGABYTE = 10**9


def write_results(
    folder: Path,
    layouts: Sequence[str] = ("tp4", "pp4", "tp2pp2"),
    concurrencies: Sequence[int] = (1, 8, 32),
    failing: Sequence[str] = (),
    device: str = "cuda",
    ranks: int = 4,
    served: int = 20,
    calls: int = 6,
    samples: int = 30,
    ablated: Sequence[str] = (),
) -> Path:
    """Two runs of every layout at every concurrency. served: requests of a run. calls: collectives
    of a step. samples: of a GPU.

    The stages of pp4 have four micro-batches in flight, where there are as many requests. ablated:
    layouts that are run without collectives too. A bound is a quarter above what was measured.
    """
    store = Store(folder)
    store.create()
    gpu = {
        "name": "Test GPU",
        "memory_bytes": 80 * GIGABYTE,
        "max_sm_clock_mhz": 1980,
        "power_limit_w": 700.0,
    }
    gpus = [{**gpu, "index": index} for index in range(ranks)] if device == "cuda" else []
    devices = [
        {"node": "local", "index": index, "name": "Test GPU", "memory_bytes": 80 * GIGABYTE}
        for index in range(ranks)
    ]
    host = {"name": "here", "cpu_count": 4}
    store.update_manifest(
        device=device, gpus=gpus, topology=devices, host=host, versions={"torch": "2"}
    )
    for place, layout in enumerate(layouts):
        for concurrency in concurrencies:
            cell = Cell(
                Deployment("tiny", layout, "torch", "bfloat16"),
                Scenario("short", 256, 128),
                concurrency,
            )
            for index in range(2):
                run = Run(cell, index)
                if layout in failing:
                    store.write_run(
                        run,
                        {
                            "status": "failed",
                            "reason": "out_of_memory: <rank 3>",
                            "num_gpus": ranks,
                        },
                        {},
                    )
                    continue
                speed = concurrency**0.8 * (10 - place) * (1 + 0.01 * index)
                micro_batches = min(4 if layout == "pp4" else 1, concurrency)
                store.write_run(
                    run,
                    summary(speed, concurrency, ranks, device),
                    tables(served, ranks, samples, device, micro_batches),
                )
                if layout in ablated:
                    bare = Cell(
                        Deployment("tiny", layout, "torch", "bfloat16", ablation="comm"),
                        cell.scenario,
                        concurrency,
                    )
                    store.write_run(
                        Run(bare, index),
                        {**summary(speed, concurrency, ranks, device), "decode_ms_per_step": 8.0},
                        {},
                    )
            if layout not in failing:
                store.write_observed(cell, observed(ranks, calls))
    return folder


def summary(speed: float, concurrency: int, ranks: int, device: str) -> dict[str, Any]:
    shares = {
        name: SHARES.get(name.removeprefix("prefill_").removesuffix("_pct"), 14.0)
        for name in SHARE_COLUMNS
    }
    return {
        "status": "completed",
        "output_throughput": speed,
        "output_throughput_per_gpu": speed / ranks,
        "num_gpus": ranks,
        "device_name": "Test GPU" if device == "cuda" else "cpu",
        "input_len": 256,
        "output_len": 128,
        "median_tpot_ms": 1e3 * concurrency / speed,
        "median_ttft_ms": 50.0,
        "peak_memory_bytes": 50 * GIGABYTE,
        "peak_memory_bytes_per_rank": [50 * GIGABYTE] * ranks,
        "weight_bytes_per_rank": [30 * GIGABYTE] * ranks,
        "kv_bytes_per_rank": [15 * GIGABYTE] * ranks,
        **shares,
        "decode_ms_per_step": 10.0,
        "bound_output_throughput": 1.25 * speed,
        "bound_pct": 80.0,
        "bound_source": "calibrated",
    }


def tables(
    served: int, ranks: int, samples: int, device: str, micro_batches: int
) -> dict[str, pa.Table]:
    random = np.random.default_rng(0)
    firsts = random.uniform(0.05, 0.5, served)
    common = {"replica": 0, "input_len": 256, "output_len": 3, "arrival_s": 0.0}
    requests = [
        {**common, "request_index": i, "token_times_s": [first, first + 0.01, first + 0.03]}
        for i, first in enumerate(firsts)
    ]
    gpus = range(ranks) if device == "cuda" else [None]
    seen = (
        {"gpu_utilization_pct": 90, "memory_used_bytes": 51 * GIGABYTE} if device == "cuda" else {}
    )
    watts = random.uniform(400, 600, samples)
    rows = [
        {
            **seen,
            "rank": gpu or 0,
            "gpu": gpu,
            "time_s": i / 10,
            "process_cpu_pct": 99.0,
            "power_w": watts[i] if seen else None,
        }
        for i in range(samples)
        for gpu in gpus
    ]
    decode = {"phase": "decode", "num_requests": 1, "num_tokens": 1}
    steps = [
        {
            **decode,
            "rank": rank,
            "step": step,
            "micro_batch": step % micro_batches,
            "end_s": step / 100,
        }
        for rank in range(ranks)
        for step in range(8)
    ]
    return {
        "requests": to_table(requests, REQUESTS),
        "telemetry": to_table(rows, TELEMETRY),
        "steps": to_table(steps, STEPS),
    }


def observed(ranks: int, calls: int) -> dict[str, pa.Table]:
    parts = [
        {
            "rank": rank,
            "phase": phase,
            "steps": 3,
            "step_ms": 10.0,
            **{f"{part}_ms": SHARES[part] / 10 for part in PARTS},
        }
        for rank in range(ranks)
        for phase in ("decode", "prefill")
    ]
    rows = [row for rank in range(ranks) for row in spans(rank, calls)]
    timed = [
        {
            "rank": rank,
            "phase": phase,
            "op": "all_reduce",
            "axis": "tp",
            "calls": 3 * calls,
            "bytes": 3 * calls * 2_000_000,
            "group_size": ranks,
            "transfer_us": 100.0,
            "wait_us": 10.0 * rank,
            "algbw": 20.0,
            "busbw": 30.0 - rank,
        }
        for rank in range(ranks)
        for phase in ("decode", "prefill")
    ]
    return {
        "parts": to_table(parts, table_schema("parts", PARTS_FIELDS)),
        "spans": to_table(rows, SPANS),
        "timed_collectives": to_table(timed, TIMED),
    }


def spans(rank: int, calls: int, steps: int = 3) -> Iterator[dict[str, Any]]:
    """Steps of 10 ms: compute in two stretches, then an all-reduce, `calls` times over."""
    length = 1e4 / calls
    for call in range(calls * steps):
        start = 1e6 + call * length
        common = {"rank": rank, "phase": "decode", "step": call // calls}
        for kind, begin, end in (
            ("compute", 0.0, 0.4),
            ("compute", 0.4, 0.8),
            ("all_reduce", 0.8, 1.0),
        ):
            yield {
                **common,
                "kind": kind,
                "start_us": start + begin * length,
                "end_us": start + end * length,
            }
