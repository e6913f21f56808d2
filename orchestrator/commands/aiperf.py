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
from orchestrator.experiment.levels import parse_levels
from workers.rows import flat

FORMAT = "aiperf"
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
STATISTICS = {"mean": "avg", "median": "p50", "p99": "p99", "std": "std"}
LATENCIES = {
    "e2el": "request_latency",
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_chunk_latency",
}
# Figures of a whole run -> the metric and its unit.
TOTALS = {
    "request_throughput": ("request_throughput", "requests/sec"),
    "completed": ("request_count", "requests"),
    "failed": ("error_request_count", "requests"),
    "output_throughput": ("output_token_throughput", "tokens/sec"),
    "total_input_tokens": ("total_isl", "tokens"),
    "total_output_tokens": ("total_osl", "tokens"),
    "duration": ("benchmark_duration", "sec"),
    "request_goodput": ("goodput", "requests/sec"),
}
OF_LAYOUT = ("strategy", "engine", "dtype", "quantization", "ablation", "scenario")
MEASURED = "profiling"  # the phase of a run that is not its warm-up
Metric = dict[str, object]


def record_of(run: Measured, requests: pa.Table | None) -> dict[str, object]:
    """The JSON of one run. requests: its rows of the table REQUESTS; None where they were not kept:
    then metrics have those statistics that the summary has."""
    metrics = _of_summary(run) if requests is None else _of_requests(requests)
    return {
        **{name: found for name, found in {**_totals(run), **metrics}.items() if found},
        "input_config": _config(run),
        "run_info": {"random_seed": run.conditions.seed},
        "was_cancelled": False,
        "error_summary": _errors(run),
        **_times(run),
    }


def _times(run: Measured) -> dict[str, str]:
    """When it began and ended; nothing of an imported run that does not say it."""
    if not run.conditions.started_at:
        return {}
    begun = datetime.fromisoformat(run.conditions.started_at)
    ended = begun + timedelta(seconds=run.throughput.duration or 0.0)
    return {"start_time": begun.isoformat(), "end_time": ended.isoformat()}


def _totals(run: Measured) -> Mapping[str, Metric | None]:
    """Metrics of the whole run, which have one value."""
    known = {**flat(run.throughput), **flat(run.goodput)}
    found = {name: _single(known[ours], unit) for ours, (name, unit) in TOTALS.items()}
    found["total_output_tokens"] = found["total_osl"]
    if not run.throughput.failed:
        del found["error_request_count"]
    return found


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
    return {name: _known(getattr(run.latency, ours)) for ours, name in LATENCIES.items()}


def _known(found: Statistics) -> Metric | None:
    values = {name: getattr(found, ours) for ours, name in STATISTICS.items()}
    known: Metric = {name: value for name, value in values.items() if value is not None}
    return {"unit": "ms", **known} if known else None


def _config(run: Measured) -> dict[str, object]:
    """What was asked, under the names of AIPerf's `BenchmarkConfig`; what that does not know as
    `extra`, its inputs. Its `urls` and `datasets` are left out, as there was no server."""
    levels = parse_levels([run.goodput.goodput or ""], "goodput")
    layout = {
        **{name: getattr(run.cell, name) for name in OF_LAYOUT},
        "num_gpus": run.conditions.num_gpus,
        "device_name": run.conditions.device_name,
        "start": run.start,
        "run": run.run,
        **_traced(run),
    }
    return {
        "models": {"items": [{"name": run.cell.model}]},
        "endpoint": {"streaming": True, "extra": layout},
        "phases": [{"name": MEASURED, "kind": MEASURED, **_sent(run)}],
        **({"slos": {LATENCIES[ours]: ms for ours, ms in levels.items()}} if levels else {}),
    }


def _traced(run: Measured) -> dict[str, object]:
    """What AIPerf's fixed schedule does not say of a trace."""
    known = run.arrivals
    told = {"trace": known.trace, "request_rate": known.request_rate} if known.trace else {}
    return {name: value for name, value in told.items() if value is not None}


def _sent(run: Measured) -> dict[str, object]:
    """How requests were sent."""
    load = {"requests": run.conditions.num_prompts, "concurrency": run.cell.max_concurrency}
    rate, shape = run.arrivals.request_rate, run.arrivals.burstiness
    if run.arrivals.trace:
        return {"type": "fixed_schedule", **load}
    if rate is None or math.isinf(rate):
        return {"type": "concurrency", **load}
    gaps = {None: "constant", 1.0: "poisson"}.get(shape, "gamma")
    smoothness = {"smoothness": shape} if gaps == "gamma" else {}
    return {"type": gaps, **load, "rate": rate, **smoothness}


def _errors(run: Measured) -> list[dict[str, object]]:
    count = run.throughput.failed
    if not count:
        return []
    return [{"error_details": {"message": "no token was made"}, "count": count}]
