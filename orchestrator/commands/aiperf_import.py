"""A file of AIPerf, `profile_export_aiperf.json`, as the record of a run: what it says under the
names of vLLM's benchmark. `aiperf` has its names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.analysis.goodput import text
from orchestrator.commands.aiperf import LATENCIES, MEASURED, STATISTICS, TOTALS
from orchestrator.commands.vllm_bench import Record
from orchestrator.commands.vllm_import import CLOSED, is_number
from orchestrator.errors import UserError

ALWAYS = TOTALS.keys() - {"failed", "request_goodput"}  # of a model that generates
IN_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "sec": 1e3}
RATES = ("request_rate", "user_centric_rate", "rate")  # before schema 1.2, and since
BURST = "concurrency_burst"  # how AIPerf called a closed loop before schema 1.2


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
    if len(_measured(_part(found, "input_config"))) > 1:
        raise UserError(
            f"{where} is of several phases with loads of their own, which no cell has; give one of "
            "a run with one phase beside its warm-up"
        )
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
    """How requests were sent: `loadgen`, or the phase that was measured."""
    return next(iter(_measured(config)), _part(config, "loadgen"))


def _measured(config: Record) -> Sequence[Record]:
    """The phases that are no warm-up."""
    phases = config.get("phases")
    found = [one for one in phases if isinstance(one, dict)] if isinstance(phases, list) else []
    return [one for one in found if MEASURED in (one.get("kind"), one.get("name"))]


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
