"""A run as the JSON that `vllm bench serve --save-result` writes.

The fields are those of vllm/benchmarks/serve.py, in its order. What vLLM does not know of a run, as
its layout, stands where its `--metadata KEY=VALUE` does: text, at the top level.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis.latency import Latency, TokenTimes
from orchestrator.analysis.summary import Measured
from orchestrator.store.schema import COMPLETED, RUN_KEYS, CellKey, RunKey, places
from workers.rows import flat, grouped

FORMAT = "vllm-bench"
DATE = "%Y%m%d-%H%M%S"
DETAILED = (
    "input_lens",
    "output_lens",
    "start_times",
    "ttfts",
    "itls",
    "generated_texts",
    "errors",
)
LATENCIES = tuple(one.name for one in fields(Latency))
OF_CELL = ("experiment", "strategy", "engine", "dtype", "quantization", "ablation", "scenario")
NO_TOKEN = "no token was made"

Record = dict[str, Any]


def record_of(run: Measured, requests: pa.Table | None, runs: int, detailed: bool) -> Record:
    """The JSON of one run, of the `runs` of its cell. requests: its rows of the table REQUESTS;
    None where they were not kept, which leaves out what is a list or made of one.

    detailed: with the lists of `--save-detailed`. Latencies count from a request's arrival, so the
    client's queue is in them and `queue_times` are 0.
    """
    lists = {} if requests is None else _lists(requests)
    left_out = () if detailed else DETAILED
    at = run.conditions.started_at  # empty of an imported run that does not say it
    return {
        "date": datetime.fromisoformat(at).strftime(DATE) if at else None,
        "endpoint_type": run.cell.engine,
        "backend": run.cell.engine,
        "label": run.cell.strategy,
        "model_id": run.cell.model,
        "tokenizer_id": run.cell.model,
        "num_prompts": run.conditions.num_prompts,
        **_metadata(run, runs),
        "request_rate": run.arrivals.request_rate if run.arrivals.is_open else "inf",
        "burstiness": run.arrivals.burstiness or 1.0,
        "max_concurrency": run.cell.max_concurrency,
        **_totals(run),
        **{name: values for name, values in lists.items() if name not in left_out},
        **_statistics(run.latency),
    }


def _metadata(run: Measured, runs: int) -> dict[str, str]:
    """What vLLM does not know of a run, and what the user had kept beside it, which comes first."""
    asked = run.conditions
    known = {
        **json.loads(asked.metadata or "{}"),
        **{name: value for name, value in flat(run.cell).items() if name in OF_CELL},
        "input_len": asked.input_len,
        "output_len": asked.output_len,
        "num_gpus": asked.num_gpus,
        "seed": asked.seed,
        "device_name": asked.device_name,
        "goodput": run.goodput.goodput,
        "trace": run.arrivals.trace,
        "start": run.start,
        "run": run.run,
        "num_runs": runs,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _totals(run: Measured) -> Record:
    names = ("duration", "completed", "failed", "total_input_tokens", "total_output_tokens")
    made = run.throughput
    return {
        **{name: getattr(made, name) for name in names},
        "request_throughput": made.request_throughput,
        "request_goodput": run.goodput.request_goodput,
        "output_throughput": made.output_throughput,
        "total_token_throughput": made.total_token_throughput,
    }


def _lists(requests: pa.Table) -> Record:
    """What has a value a request, and the peaks over seconds that are made of it."""
    ordered = requests.sort_by("request_index")
    times = TokenTimes.of(ordered)
    served = times.counts > 0
    starts, ends = times.ends - times.counts, times.ends
    texts = ordered["output_text"].to_pylist() if "output_text" in ordered.column_names else []
    ttfts, latencies = times.ttft_ms() / 1e3, times.e2el_ms() / 1e3
    return {
        "input_lens": ordered["input_len"].to_pylist(),
        "output_lens": times.counts.tolist(),
        "ttfts": np.where(served, ttfts, 0.0).tolist(),
        "itls": [np.diff(times.times[a:b]).tolist() for a, b in zip(starts, ends, strict=True)],
        "latencies": np.where(served, latencies, 0.0).tolist(),
        "start_times": times.arrivals.tolist(),
        "queue_times": [0.0] * len(served),
        "generated_texts": [text or "" for text in texts] or [""] * len(served),
        "errors": ["" if one else NO_TOKEN for one in served],
        **_peaks(times),
        "rtfx": 0.0,
    }


def _peaks(times: TokenTimes) -> Record:
    """Most tokens in a second, and most requests in flight in one, counted as vLLM does."""
    served = times.counts > 0
    if not served.any():
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    first = float(times.arrivals[served].min())
    begun = (times.arrivals[served] - first).astype(int)
    ended = (times.last[served] - first).astype(int)
    flying = np.zeros(int(ended.max()) + 2, dtype=int)
    np.add.at(flying, begun, 1)
    np.add.at(flying, ended + 1, -1)
    return {
        "max_output_tokens_per_s": float(np.bincount((times.times - first).astype(int)).max()),
        "max_concurrent_requests": int(np.cumsum(flying).max()),
    }


def _statistics(latency: Latency) -> dict[str, float | None]:
    return {
        f"{statistic}_{name}_ms": value
        for name in LATENCIES
        for statistic, value in vars(getattr(latency, name)).items()
    }


def completed_by_cell(runs: Sequence[Measured]) -> dict[CellKey, list[Measured]]:
    """The completed runs of each cell, the one of the least output_throughput first."""
    done = [run for run in runs if run.status == COMPLETED]
    done.sort(key=lambda run: run.throughput.output_throughput or 0.0)
    return grouped(done, lambda run: run.cell)


def requests_by_run(table: pa.Table | None) -> Callable[[RunKey], pa.Table | None]:
    """What gives the rows of a run in the table `requests`; None where they were not kept."""
    rows = {} if table is None else places(table, RUN_KEYS)

    def requests(run: RunKey) -> pa.Table | None:
        mine = rows.get(RunKey(cell=run.cell, start=run.start, run=run.run))
        return None if table is None or mine is None else table.take(mine)

    return requests
