"""A file of `vllm bench serve --save-result`, or one under its names, as a run: the columns that it
has, None elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis.goodput import Goodput
from orchestrator.analysis.latency import Latency, Statistics
from orchestrator.analysis.outputs import KEPT_REQUESTS
from orchestrator.analysis.summary import Conditions, Figures, Measured, Settings
from orchestrator.analysis.throughput import Throughput
from orchestrator.commands.vllm_bench import LATENCIES, Record
from orchestrator.errors import UserError
from orchestrator.plan.deployments import devices_of
from orchestrator.store.schema import COMPLETED, CellKey, RunKey
from strategies.registry import spelled
from workers.rows import flat, nothing, widened

# A generation benchmark has at least these. Those of Throughput have the same names there.
NEEDED = ("duration", "completed", "total_input_tokens", "total_output_tokens", "output_throughput")
COUNTED = (
    "completed",
    "failed",
    *(f"total_{kind}_tokens" for kind in ("input", "cached", "output")),
)
UNKNOWN = "unknown"
CLOSED = "inf"  # the rate of requests that all arrive at once
COUNTS = ("input_lens", "output_lens")
LISTS = (*COUNTS, "start_times", "ttfts", "itls")
MOST = 2**63 - 1  # of a whole number in a column
LONGEST_S = 1_000_000  # of a time of a request


@dataclass(frozen=True, slots=True)
class Named:
    """What the user says of imported runs; None where the files are to say it themselves."""

    strategy: str | None = None
    model: str | None = None
    engine: str | None = None
    dtype: str | None = None
    scenario: str | None = None


def is_number(value: object) -> bool:
    """Whether it is a number that a column can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= MOST


def run_of(record: Record, where: str, tool: str, experiment: str, named: Named) -> Measured:
    """The row of a run of vLLM's benchmark: what the file has, None elsewhere.

    where, tool: name the file in errors and in `reason`. Raises UserError where it is no generation
    benchmark, or does not say its layout and `named` does not either.
    """
    for name in NEEDED:
        if _number(record, name) is None:
            number = "whole number" if name in COUNTED else "number"
            raise UserError(
                f"{where} is no result of {tool} of a model that generates: it has no {number} "
                f"'{name}', 0 or more"
            )
    cell, figures = _cell(record, where, experiment, named), nothing(Figures)
    gpus = devices_of(cell.strategy)
    made = Throughput(
        **{one.name: _number(record, one.name) for one in fields(Throughput)}
        | {"output_throughput_per_gpu": record["output_throughput"] / gpus}
    )
    return widened(
        Measured,
        RunKey(cell=cell, start=_whole(record, "start") or 0, run=_whole(record, "run") or 0),
        **{
            **vars(figures),
            "conditions": _conditions(record, gpus),
            "throughput": made,
            "latency": _latency(record),
            "goodput": _goodput(record),
            "arrivals": _arrivals(record, figures),
        },
        status=COMPLETED,
        reason=f"imported from {where}, written by {tool}: it has no other columns",
        output_digest=None,
    )


def _cell(record: Record, where: str, experiment: str, named: Named) -> CellKey:
    model = named.model or str(record.get("model_id") or UNKNOWN).rstrip("/").rpartition("/")[2]
    return CellKey(
        experiment=experiment,
        model=model,
        strategy=_layout(record, where, named.strategy),
        engine=named.engine or str(record.get("engine") or record.get("backend") or UNKNOWN),
        dtype=named.dtype or str(record.get("dtype") or UNKNOWN),
        quantization=str(record.get("quantization") or "none"),
        ablation=str(record.get("ablation") or "none"),
        scenario=named.scenario or str(record.get("scenario") or _lengths_name(record)),
        max_concurrency=_whole(record, "max_concurrency") or _asked_for(record),
    )


def _layout(record: Record, where: str, named: str | None) -> str:
    """As results spell it, so that `compare` finds the same cell in both."""
    said = record.get("strategy")
    if not (said or named):
        raise UserError(
            f"{where} does not say which layout it is of; give --strategy, as in --strategy tp4"
        )
    found = spelled(str(said or named))
    if named and spelled(named) != found:
        raise UserError(
            f"{where} says that it is of {found}, and --strategy {named} is another layout; leave "
            "--strategy out"
        )
    return found


def _lengths(record: Record) -> tuple[int | None, int | None]:
    """Tokens of each prompt and of each output; None where they differ."""
    count = record["completed"]
    totals = record["total_input_tokens"], record["total_output_tokens"]
    even = [int(total // count) if count and total % count == 0 else None for total in totals]
    return even[0], even[1]


def _mean(record: Record, total: str) -> float | None:
    """Tokens of a completed request."""
    return record[total] / record["completed"] if record["completed"] else None


def _lengths_name(record: Record) -> str:
    """As `submit --input-len --output-len` calls them."""
    input_len, output_len = _lengths(record)
    return f"{input_len}x{output_len}" if input_len and output_len else "mixed"


def _asked_for(record: Record) -> int:
    return _whole(record, "num_prompts") or int(record["completed"])


def _conditions(record: Record, gpus: int) -> Conditions:
    input_len, output_len = _lengths(record)
    return Conditions(
        input_len=input_len,
        output_len=output_len,
        mean_input_len=_mean(record, "total_input_tokens"),
        mean_output_len=_mean(record, "total_output_tokens"),
        num_prompts=_asked_for(record),
        num_conversations=None,
        seed=_whole(record, "seed"),
        num_gpus=gpus,
        device_name=_text(record, "device_name"),
        started_at=_started_at(record),
        block=0,
        node=None,
        metadata=json.dumps({k: v for k, v in record.items() if isinstance(v, str)}),
        settings=nothing(Settings),
    )


def _started_at(record: Record) -> str:
    """The date of the file as ISO 8601; empty where it is none. vLLM's has no time zone."""
    try:
        return datetime.fromisoformat(str(record.get("date"))).isoformat()
    except ValueError:
        return ""


def _latency(record: Record) -> Latency:
    return Latency(**{name: _statistics_of(record, name) for name in LATENCIES})


def _statistics_of(record: Record, latency: str) -> Statistics:
    names = [one.name for one in fields(Statistics)]
    return Statistics(**{name: _number(record, f"{name}_{latency}_ms") for name in names})


def _goodput(record: Record) -> Goodput:
    """None where the file does not say which service levels it is of: vLLM's own never do."""
    levels = _text(record, "goodput")
    known = _number(record, "request_goodput") if levels else None
    return replace(nothing(Goodput), goodput=levels, request_goodput=known)


def _arrivals(record: Record, figures: Figures) -> object:
    """The rate and burstiness of an open loop; vLLM writes "inf" for a closed one, and knows no
    trace: what exported one has the rate of, or null where it was not known."""
    rate = _number(record, "request_rate")
    trace = _text(record, "trace") if record.get("request_rate") != CLOSED else None
    burstiness = _number(record, "burstiness") if rate and not trace else None
    return replace(figures.arrivals, request_rate=rate, burstiness=burstiness, trace=trace)


def _number(record: Mapping[str, object], name: str) -> Any:
    """The finite number of that name, 0 or more, a whole one of a count; None where it is none."""
    found: Any = record.get(name)
    value = _counted(found) if name in COUNTED else found
    return value if value is not None and is_number(value) and value >= 0 else None


def _counted(value: object) -> int | None:
    """A number that is whole, which may be written with a point; None where it is none."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return whole if isinstance(whole, int) and is_number(whole) else None


def _text(record: Mapping[str, object], name: str) -> str | None:
    """The text of that name; None where it is none."""
    value = record.get(name)
    return value if isinstance(value, str) else None


def _whole(record: Mapping[str, object], name: str) -> int | None:
    """A whole number, 0 or more, which metadata holds as text."""
    value = record.get(name)
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) <= len(str(MOST)) else None
    number = _counted(value)
    return number if number is None or number >= 0 else None


def requests_of(record: Record, where: str, run: RunKey) -> pa.Table | None:
    """The requests of a detailed file, table REQUESTS with their keys. None where it has no such
    lists, or a gap of it holds several tokens, so that their times are not known. Raises UserError
    where something else than a number is in them."""
    lists = [found for name in LISTS if isinstance(found := record.get(name), list)]
    if len(lists) < len(LISTS) or len({*map(len, lists)}) > 1:
        return None
    for name, values in zip(LISTS, lists, strict=True):
        wrong = next((place for place, one in enumerate(values) if not _fits(name, one)), None)
        if wrong is not None:
            found = repr(values[wrong])[:60]
            raise UserError(
                f"{where}: request {wrong} in {name} is {found}; it must be {_of(name)}"
            )
    rows = list(zip(*lists, strict=True))
    whole = rows and all(made == _tokens(made, itl) for _, made, _, _, itl in rows)
    return _table(rows, run) if whole else None


def _fits(name: str, value: object) -> bool:
    """Whether it is what a request has in the list of that name."""
    if name == "itls":
        return isinstance(value, list) and all(_fits("ttfts", one) for one in value)
    if not isinstance(value, int | float) or not is_number(value):
        return False
    if name in COUNTS:
        return isinstance(value, int) and value >= 0
    return name == "start_times" or 0 <= value <= LONGEST_S


def _of(name: str) -> str:
    times = f"from 0 to {LONGEST_S:,}"
    if name == "itls":
        return f"a list of numbers {times}"
    if name in COUNTS:
        return "a whole number, 0 or more"
    return "a number" if name == "start_times" else f"a number {times}"


def _tokens(made: int, gaps: Sequence[float]) -> int:
    return len(gaps) + 1 if made else 0


def _table(rows: Sequence[tuple[Any, ...]], run: RunKey) -> pa.Table:
    first = min(start for _, _, start, _, _ in rows)
    arrived = [start - first for _, _, start, _, _ in rows]
    times = [
        (at + ttft + np.cumsum([0.0, *itl])).tolist() if made else []
        for at, (_, made, _, ttft, itl) in zip(arrived, rows, strict=True)
    ]
    count = len(rows)
    columns: dict[str, list[Any]] = {name: [value] * count for name, value in flat(run).items()}
    columns |= {
        "request_index": list(range(count)),
        "input_len": [row[0] for row in rows],
        "output_len": [row[1] for row in rows],
        "arrival_s": arrived,
        "token_times_s": times,
    }
    arrays = [
        pa.array(columns.get(one.name, [None] * count), type=one.type)
        for one in KEPT_REQUESTS.columns
    ]
    return pa.Table.from_arrays(arrays, schema=KEPT_REQUESTS.schema)
