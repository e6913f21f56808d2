"""A run as the JSON that AIPerf writes, `profile_export_aiperf.json`: a metric each, with its unit
and its statistics.

Names, units and statistics are those of ai-dynamo/aiperf: `JsonExportData` in
aiperf/common/models/export_models.py, and aiperf/metrics/types. Its `inter_token_latency` is TPOT,
one value a request; the gaps between tokens are its `inter_chunk_latency`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from orchestrator.analysis.latency import Statistics, TokenTimes
from orchestrator.analysis.summary import Measured

FORMAT = "aiperf"
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
Metric = dict[str, object]


def record_of(run: Measured, requests: pa.Table | None) -> dict[str, object]:
    """The JSON of one run. requests: its rows of the table REQUESTS; None where they were not kept:
    then metrics have those statistics that the summary has."""
    metrics = _of_summary(run) if requests is None else _of_requests(requests)
    begun = datetime.fromisoformat(run.conditions.started_at)
    ended = begun + timedelta(seconds=run.throughput.duration or 0.0)
    return {
        **{name: found for name, found in {**_totals(run), **metrics}.items() if found},
        "input_config": _config(run),
        "was_cancelled": False,
        "error_summary": _errors(run),
        "start_time": begun.isoformat(),
        "end_time": ended.isoformat(),
    }


def _totals(run: Measured) -> Mapping[str, Metric | None]:
    """Metrics of the whole run, which have one value."""
    made, good = run.throughput, run.goodput.request_goodput
    return {
        "request_throughput": _single(made.request_throughput, "requests/sec"),
        "request_count": _single(made.completed, "requests"),
        "output_token_throughput": _single(made.output_throughput, "tokens/sec"),
        "total_output_tokens": _single(made.total_output_tokens, "tokens"),
        "total_isl": _single(made.total_input_tokens, "tokens"),
        "total_osl": _single(made.total_output_tokens, "tokens"),
        "benchmark_duration": _single(made.duration, "sec"),
        "goodput": _single(good, "requests/sec"),
        "error_request_count": _single(made.failed or None, "requests"),
    }


def _single(value: float | None, unit: str) -> Metric | None:
    return None if value is None else {"unit": unit, "avg": value}


def _of_requests(requests: pa.Table) -> Mapping[str, Metric | None]:
    """Metrics that have a value a request, over the requests that made a token."""
    times = TokenTimes.of(requests)
    tpot = times.tpot_ms()
    second = [1e3 * (one[1] - one[0]) for one in times.of_each() if len(one) > 1]
    with np.errstate(divide="ignore"):
        per_user = 1e3 / tpot
    served = times.counts > 0
    prompts = np.asarray(requests.column("input_len"), dtype=float)[served]
    made = times.counts[served].astype(float)
    return {
        "request_latency": _spread(times.e2el_ms(), "ms"),
        "time_to_first_token": _spread(times.ttft_ms(), "ms"),
        "time_to_second_token": _spread(np.asarray(second), "ms"),
        "inter_token_latency": _spread(tpot, "ms"),
        "inter_chunk_latency": _spread(times.itl_ms(), "ms"),
        "output_token_throughput_per_user": _spread(per_user, "tokens/sec/user"),
        "input_sequence_length": _spread(prompts, "tokens"),
        "output_sequence_length": _spread(made, "tokens"),
        "output_token_count": _spread(made, "tokens"),
    }


def _spread(values: np.ndarray, unit: str) -> Metric | None:
    """Every statistic of the values that are known; None where there is none."""
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    points = np.percentile(known, PERCENTILES)
    return {
        "unit": unit,
        "avg": float(known.mean()),
        **{f"p{one}": float(value) for one, value in zip(PERCENTILES, points, strict=True)},
        "min": float(known.min()),
        "max": float(known.max()),
        "std": float(known.std()),
    }


def _of_summary(run: Measured) -> Mapping[str, Metric | None]:
    latency = run.latency
    return {
        "request_latency": _known(latency.e2el),
        "time_to_first_token": _known(latency.ttft),
        "inter_token_latency": _known(latency.tpot),
        "inter_chunk_latency": _known(latency.itl),
    }


def _known(found: Statistics) -> Metric | None:
    values = {"avg": found.mean, "p50": found.median, "p99": found.p99, "std": found.std}
    known: Metric = {name: value for name, value in values.items() if value is not None}
    return {"unit": "ms", **known} if known else None


def _config(run: Measured) -> dict[str, object]:
    """What was asked, under AIPerf's names. What it does not know stands as `extra`: its inputs."""
    rate = run.arrivals.request_rate
    load = {
        "concurrency": run.cell.max_concurrency,
        "request_count": run.conditions.num_prompts,
        **({} if rate is None or math.isinf(rate) else {"request_rate": rate}),
    }
    layout = {
        "strategy": run.cell.strategy,
        "engine": run.cell.engine,
        "dtype": run.cell.dtype,
        "scenario": run.cell.scenario,
        "num_gpus": run.conditions.num_gpus,
        "device_name": run.conditions.device_name,
        "start": run.start,
        "run": run.run,
    }
    return {
        "endpoint": {"model_names": [run.cell.model], "streaming": True},
        "input": {"extra": layout, "random_seed": run.conditions.seed},
        "loadgen": load,
    }


def _errors(run: Measured) -> list[dict[str, object]]:
    count = run.throughput.failed
    if not count:
        return []
    return [{"error_details": {"message": "no token was made"}, "count": count}]
