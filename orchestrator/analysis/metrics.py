"""What every figure means: pure functions from a run's tables to the columns of its summary row.

Names and definitions are those of vLLM's serving benchmark where it has them. Times in the tables
are seconds since the start of the run on the clock of the rank that reports them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis import accounting, arrivals, bounds, goodput
from orchestrator.analysis import energy as telemetry
from orchestrator.store.schema import RUN
from strategies.memory import kv_bytes_per_token
from strategies.shapes import DTYPE_BYTES
from workers.messages import Built, EnginePlan, RankReport
from workers.records import column, table_schema

LATENCIES = ("ttft", "tpot", "itl", "e2el")
STATISTICS = ("mean", "median", "std", "p99")
LATENCY_COLUMNS = tuple(
    f"{statistic}_{latency}_ms" for latency in LATENCIES for statistic in STATISTICS
)

COMPLETED, FAILED, INVALID = (
    "completed",
    "failed",
    "invalid",
)  # invalid: measured above what the hardware can do

SUMMARY = table_schema(
    "summary",
    [
        *RUN,
        column("status", pa.string()),
        column("reason", pa.string()),
        column("input_len", pa.int32(), "tokens"),
        column("output_len", pa.int32(), "tokens"),
        column("num_prompts", pa.int32(), "requests"),
        column("seed", pa.int64(), "1"),
        column("num_gpus", pa.int32(), "1"),
        column("device_name", pa.string()),
        column("started_at", pa.string()),
        column("turn", pa.int32(), "1"),
        column("completed", pa.int32(), "requests"),
        column("failed", pa.int32(), "requests"),
        column("duration", pa.float64(), "s"),
        column("total_input_tokens", pa.int64(), "tokens"),
        column("total_output_tokens", pa.int64(), "tokens"),
        column("request_throughput", pa.float64(), "requests/s"),
        column("output_throughput", pa.float64(), "tokens/s"),
        column("total_token_throughput", pa.float64(), "tokens/s"),
        column("output_throughput_per_gpu", pa.float64(), "tokens/s"),
        column("steady_output_throughput", pa.float64(), "tokens/s"),
        column("steady_s", pa.float64(), "s"),
        *goodput.FIELDS,
        *arrivals.FIELDS,
        column("output_digest", pa.string()),
        *(column(name, pa.float64(), "ms") for name in LATENCY_COLUMNS),
        column("decode_ms_per_step", pa.float64(), "ms"),
        column("prefill_s", pa.float64(), "s"),
        column("build_s", pa.float64(), "s"),
        column("load_s", pa.float64(), "s"),
        column("capture_s", pa.float64(), "s"),
        column("startup_s", pa.float64(), "s"),
        column("weight_bytes", pa.int64(), "B"),
        column("kv_tokens", pa.int64(), "tokens"),
        column("peak_memory_bytes", pa.int64(), "B"),
        column("peak_memory_bytes_per_rank", pa.list_(pa.int64()), "B"),
        column("weight_bytes_per_rank", pa.list_(pa.int64()), "B"),
        column("kv_bytes_per_rank", pa.list_(pa.int64()), "B"),
        column("comm_calls", pa.int64(), "1"),
        column("comm_bytes", pa.int64(), "B"),
        *accounting.FIELDS,
        *telemetry.FIELDS,
        *bounds.FIELDS,
        column("metadata", pa.string()),
    ],
)


def of_requests(
    requests: pa.Table, max_concurrency: int, num_prompts: int, num_gpus: int
) -> dict[str, Any]:
    """Throughput and latency columns from a table in the schema REQUESTS.

    `duration` is the time of the last token; `completed` counts requests that made a token,
    `failed` the others of the `num_prompts` asked for. Throughputs are per second of `duration`,
    prefill included.
    """
    served = _Served(requests)
    duration = max((float(times[-1]) for times in served.times), default=0.0)
    made, read = sum(map(len, served.times)), int(sum(served.input_lens))
    rate = 1.0 / duration if duration > 0 else None
    row: dict[str, Any] = {
        "completed": len(served.times),
        "failed": num_prompts - len(served.times),
        "duration": duration,
        "total_input_tokens": read,
        "total_output_tokens": made,
        "request_throughput": rate and len(served.times) * rate,
        "output_throughput": rate and made * rate,
        "total_token_throughput": rate and (made + read) * rate,
        "output_throughput_per_gpu": rate and made * rate / num_gpus,
        "decode_ms_per_step": decode_ms_per_step(served.times, served.replicas),
        "prefill_s": prefill_s(served.times, served.indices, max_concurrency),
    }
    for name, values in served.latencies_ms().items():
        row |= statistics(name, values)
    return row


def statistics(name: str, values_ms: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, standard deviation (of the population) and 99th percentile (linear), None where
    there is no value."""
    if not len(values_ms):
        return {f"{statistic}_{name}_ms": None for statistic in STATISTICS}
    values = np.asarray(values_ms)
    figures = (values.mean(), np.median(values), values.std(), np.percentile(values, 99))
    return {
        f"{statistic}_{name}_ms": float(figure)
        for statistic, figure in zip(STATISTICS, figures, strict=True)
    }


def decode_ms_per_step(times: Sequence[np.ndarray], replicas: Sequence[int]) -> float | None:
    """Mean gap between two tokens of a request in steady decode, in ms.

    A gap counts if no request of the same replica got its first token in it: nobody's prefill is in
    the way.
    """
    gaps: list[np.ndarray] = []
    for replica in set(replicas):
        mine = [t for t, r in zip(times, replicas, strict=True) if r == replica]
        firsts = np.sort([t[0] for t in mine])
        for t in mine:
            seen = np.searchsorted(firsts, t, side="right")
            gaps.append(np.diff(t)[np.diff(seen) == 0])
    pooled = np.concatenate(gaps) if gaps else np.empty(0)
    return float(pooled.mean() * 1e3) if pooled.size else None


def prefill_s(
    times: Sequence[np.ndarray], indices: Sequence[int], max_concurrency: int
) -> float | None:
    """Seconds until each of the first `max_concurrency` requests has its first token."""
    return max(
        (float(t[0]) for t, index in zip(times, indices, strict=True) if index < max_concurrency),
        default=None,
    )


def of_collectives(reports: Iterable[RankReport]) -> dict[str, int | None]:
    """Calls and bytes of every collective of the run, summed over ranks; None where an engine
    cannot count them."""
    tables = [report.collectives for report in reports]
    counted = [table for table in tables if table is not None]
    if len(counted) < len(tables) or not tables:
        return {"comm_calls": None, "comm_bytes": None}
    return {
        f"comm_{name}": sum(sum(table.column(name).to_pylist()) for table in counted)
        for name in ("calls", "bytes")
    }


def of_memory(reports: Iterable[RankReport]) -> dict[str, Any]:
    """Peak bytes of the fullest rank, and of each in rank order."""
    peaks = [report.peak_memory_bytes for report in sorted(reports, key=lambda report: report.rank)]
    return {"peak_memory_bytes": max(peaks, default=None), "peak_memory_bytes_per_rank": peaks}


def of_build(built: Sequence[Built]) -> dict[str, Any]:
    """Loading and capturing take as long as the slowest rank; weights are those of the fullest; KV
    that of the scarcest."""
    return {
        "load_s": max(b.load_s for b in built),
        "capture_s": max((b.capture_s for b in built if b.capture_s is not None), default=None),
        "weight_bytes": max(b.weight_bytes for b in built),
        "kv_tokens": min((b.kv_tokens for b in built if b.kv_tokens is not None), default=None),
        "device_name": built[0].device_name,
    }


def of_ranks(built: Sequence[Built], plan: EnginePlan) -> dict[str, list[int] | None]:
    """Bytes of weights and of the paged KV cache, in rank order; no KV where an engine has no such
    cache."""
    ranks = sorted(built, key=lambda b: b.rank)
    size = DTYPE_BYTES[plan.dtype]
    pools = [
        (b.kv_tokens, kv_bytes_per_token(plan.placement, plan.model, b.rank, size)) for b in ranks
    ]
    kv = [tokens * each for tokens, each in pools if tokens is not None]
    return {
        "weight_bytes_per_rank": [b.weight_bytes for b in ranks],
        "kv_bytes_per_rank": kv if len(kv) == len(ranks) else None,
    }


def first_token_s(reports: Iterable[RankReport]) -> float:
    """Seconds from the start of a run to its first token on any replica."""
    tables = [report.requests for report in reports if report.requests is not None]
    return min((float(times[0]) for table in tables for times in _Served(table).times), default=0.0)


class _Served:
    """The requests that made at least one token, column by column."""

    def __init__(self, table: pa.Table) -> None:
        rows = [row for row in table.to_pylist() if row["token_times_s"]]
        self.times = [np.asarray(row["token_times_s"]) for row in rows]
        self.arrivals = [row["arrival_s"] for row in rows]
        self.replicas = [row["replica"] for row in rows]
        self.indices = [row["request_index"] for row in rows]
        self.input_lens = [row["input_len"] for row in rows]

    def latencies_ms(self) -> dict[str, list[float]]:
        """ttft: arrival to first token. e2el: arrival to last. tpot: (e2el - ttft) / (tokens - 1).
        itl: every gap, pooled."""
        ttft = [1e3 * (t[0] - a) for t, a in zip(self.times, self.arrivals, strict=True)]
        e2el = [1e3 * (t[-1] - a) for t, a in zip(self.times, self.arrivals, strict=True)]
        tpot = [1e3 * (t[-1] - t[0]) / (len(t) - 1) for t in self.times if len(t) > 1]
        itl = [float(gap) for t in self.times for gap in 1e3 * np.diff(t)]
        return {"ttft": ttft, "tpot": tpot, "itl": itl, "e2el": e2el}
