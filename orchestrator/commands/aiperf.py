"""A run as the JSON that AIPerf writes, `profile_export_aiperf.json`, and back: a metric each, with
its unit and its statistics.

Names, units and statistics are those of ai-dynamo/aiperf: `JsonExportData` in
aiperf/common/models/export_models.py, and aiperf/metrics/types. Its `inter_token_latency` is TPOT,
one value a request; the gaps between tokens are its `inter_chunk_latency`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis.goodput import text
from orchestrator.analysis.latency import Statistics, TokenTimes
from orchestrator.analysis.summary import Measured
from orchestrator.commands.vllm_bench import Record
from orchestrator.commands.vllm_import import CLOSED, is_number
from orchestrator.errors import UserError
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
ALWAYS = TOTALS.keys() - {"failed", "request_goodput"}  # of a model that generates
IN_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "sec": 1e3}
OF_LAYOUT = ("strategy", "engine", "dtype", "quantization", "ablation", "scenario")
RATES = ("request_rate", "user_centric_rate", "rate")  # before schema 1.2, and since
BURST = "concurrency_burst"  # how AIPerf called a closed loop before schema 1.2
MEASURED = "profiling"  # the phase of a run that is not its warm-up
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
        "run_info": {"random_seed": run.conditions.seed},
        "was_cancelled": False,
        "error_summary": _errors(run),
        "start_time": begun.isoformat(),
        "end_time": ended.isoformat(),
    }


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


# -- back


def is_record(found: Record) -> bool:
    """Whether an object is AIPerf's: of a run, or of one request."""
    return "input_config" in found or {"metadata", "metrics"} <= found.keys()


def as_vllm(found: Record, where: str) -> Record:
    """What a file of AIPerf says of its run, under the names of vLLM's benchmark.

    where: names the file in errors. Raises UserError where it is of single requests, of several
    runs, of one that was stopped, or of no model that generates, or has a unit that is not known.
    """
    if "metrics" in found:
        raise UserError(
            f"{where} is of single requests, or several runs; give profile_export_aiperf.json, "
            "which AIPerf writes for each run"
        )
    if found.get("was_cancelled") or found.get("is_complete") is False:
        raise UserError(f"{where} is of a run that was stopped, so it has figures of a part of it")
    totals = {
        ours: _whole(_value(found, name, "avg", unit, where))
        for ours, (name, unit) in TOTALS.items()
    }
    for ours in sorted(ALWAYS):
        if totals[ours] is None:
            raise UserError(
                f"{where} is no result of AIPerf of a model that generates: it has no metric "
                f"'{TOTALS[ours][0]}'"
            )
    latencies = {
        f"{statistic}_{ours}_ms": _value(found, name, theirs, "ms", where)
        for ours, name in LATENCIES.items()
        for statistic, theirs in STATISTICS.items()
    }
    totals["failed"] = totals["failed"] or 0  # not told of where there is none
    sent = sum(totals[name] or 0 for name in ("completed", "failed"))
    date = found.get("start_time")
    asked = {"num_prompts": sent, **_asked(found)}
    return {**asked, **totals, **latencies, "date": date}


def _asked(found: Record) -> Record:
    """What the configuration says: of the load, and as `extra` inputs of the layout. It has two
    forms: with `models`, `phases` and `slos` since AIPerf's schema 1.2, and the one before."""
    config = _part(found, "input_config")
    given, endpoint, load = _part(config, "input"), _part(config, "endpoint"), _load(config)
    models = _part(config, "models").get("items") or endpoint.get("model_names")
    model = models[0] if isinstance(models, list) and models else None
    known = {
        "model_id": model.get("name") if isinstance(model, dict) else model,
        "max_concurrency": load.get("concurrency"),
        "num_prompts": load.get("request_count") or load.get("requests"),
        "burstiness": _burstiness(load),
        "seed": given.get("random_seed") or _part(found, "run_info").get("random_seed"),
        "goodput": _levels(_part(given, "goodput") or _part(config, "slos")),
    }
    extra = {**_part(given, "extra"), **_part(endpoint, "extra")}
    said, schedule = extra.pop("trace", None), _schedule(given, load)
    rate = _first(load, *RATES) or CLOSED
    arrivals = {"trace": said or schedule} if schedule else {"request_rate": rate}
    return {**extra, **arrivals, **{name: value for name, value in known.items() if value}}


def _burstiness(load: Record) -> Any:
    """The shape of the gaps, which are those of Poisson where nothing else is said; None of others
    that are not drawn."""
    kind = _first(load, "type", "request_rate_mode", "arrival_pattern") or "poisson"
    return _first(load, "smoothness", "arrival_smoothness") or (1.0 if kind == "poisson" else None)


def _first(found: Record, *names: str) -> Any:
    """The first of these that is there."""
    return next((found[name] for name in names if found.get(name)), None)


def _schedule(given: Record, load: Record) -> str | None:
    """What requests of an open loop followed that had no rate; None of all others. Before schema
    1.2 it is an input, and a dataset of a trace is a schedule unless it was asked for otherwise."""
    if load.get("rate_series"):
        return "a rate series of AIPerf"
    is_asked = given.get("fixed_schedule") or load.get("type") == "fixed_schedule"
    is_burst = BURST in (load.get("request_rate_mode"), load.get("arrival_pattern"))
    is_trace = str(given.get("custom_dataset_type")).endswith("_trace")
    if not (is_asked or (is_trace and not _first(load, *RATES) and not is_burst)):
        return None
    ends = [
        load.get(f"{end}_offset") or given.get(f"fixed_schedule_{end}_offset")
        for end in ("start", "end")
    ]
    part = f", {ends[0] or 0} to {ends[1] or 'its end'} ms" if any(ends) else ""
    return f"a fixed schedule of AIPerf{part}"


def _load(config: Record) -> Record:
    """How requests were sent: `loadgen`, or the one phase that was measured."""
    phases = config.get("phases")
    found = [one for one in phases if isinstance(one, dict)] if isinstance(phases, list) else []
    measured = [one for one in found if MEASURED in (one.get("kind"), one.get("name"))]
    return measured[0] if len(measured) == 1 else _part(config, "loadgen")


def _levels(limits: Record) -> str | None:
    """The service levels of goodput, as we write them; None where any is none of ours."""
    ours = {theirs: name for name, theirs in LATENCIES.items() if name != "itl"}
    if not limits or not limits.keys() <= ours.keys() or not all(map(is_number, limits.values())):
        return None
    return text({ours[name]: limit for name, limit in limits.items()})


def _part(found: Record, name: str) -> Record:
    """An object in another; also one that is a list of pairs, as AIPerf writes `extra`."""
    part = found.get(name)
    if isinstance(part, list) and all(isinstance(one, list) and len(one) == 2 for one in part):
        return {str(key): value for key, value in part}
    return part if isinstance(part, dict) else {}


def _value(found: Record, metric: str, statistic: str, unit: str, where: str) -> Any:
    """A statistic of a metric in a unit; None where it is not there."""
    told = _part(found, metric)
    value: Any = told.get(statistic)
    given = told.get("unit")
    if not is_number(value):
        return None
    if given == unit:
        return value
    if given in IN_MS and unit in IN_MS:
        return value * IN_MS[given] / IN_MS[unit]
    raise UserError(f"{where} has {metric} in {given!r}, which is not known; {unit} is")


def _whole(value: float | None) -> float | None:
    """A count as a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
