"""Schemas of what a rank reports (pyarrow only). Every numeric field carries its unit in its
metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1


def column(name: str, kind: pa.DataType, unit: str | None = None) -> pa.Field:
    """A nullable field, with `unit` in its metadata."""
    return pa.field(name, kind, metadata={"unit": unit} if unit else None)


def table_schema(name: str, fields: Iterable[pa.Field]) -> pa.Schema:
    """A schema that knows its table's name and its version."""
    return pa.schema(list(fields), metadata={"table": name, "schema_version": str(SCHEMA_VERSION)})


# One row per request. Times are seconds since the start of the run on the reporting rank's clock.
REQUESTS = table_schema(
    "requests",
    [
        column("request_index", pa.int32(), "1"),
        column("replica", pa.int32(), "1"),
        column("input_len", pa.int32(), "tokens"),
        column("output_len", pa.int32(), "tokens"),
        column("arrival_s", pa.float64(), "s"),
        column("admitted_s", pa.float64(), "s"),  # open loop only: when the scheduler let it in
        column("token_times_s", pa.list_(pa.float64()), "s"),
        column("output_token_ids", pa.list_(pa.int32()), "1"),
    ],
)

# One row per engine step (one micro-batch through this rank's stage) and rank.
STEPS = table_schema(
    "steps",
    [
        column("rank", pa.int32(), "1"),
        column("step", pa.int32(), "1"),
        column("phase", pa.string()),
        column("micro_batch", pa.int32(), "1"),
        column("num_requests", pa.int32(), "1"),
        column("num_tokens", pa.int32(), "tokens"),
        column("end_s", pa.float64(), "s"),
    ],
)

# One row per (phase, operation, mesh axis) and rank. Bytes are message sizes as nccl-tests counts
# them, summed over calls.
COLLECTIVES = table_schema(
    "collectives",
    [
        column("rank", pa.int32(), "1"),
        column("phase", pa.string()),
        column("op", pa.string()),
        column("axis", pa.string()),
        column("calls", pa.int64(), "1"),
        column("bytes", pa.int64(), "B"),
    ],
)

# One row per sample of a rank and GPU; where there is no GPU, one of the process alone. Times are
# those of REQUESTS. What could not be read is null. Energy and the bytes of NVLink and PCIe count
# from the run's first sample; `process_cpu_pct` is of one core.
TELEMETRY = table_schema(
    "telemetry",
    [
        column("rank", pa.int32(), "1"),
        column("process_id", pa.int64(), "1"),
        column("gpu", pa.int32(), "1"),
        column("gpu_uuid", pa.string()),
        column("time_s", pa.float64(), "s"),
        column("gpu_utilization_pct", pa.int32(), "%"),
        column("memory_utilization_pct", pa.int32(), "%"),
        column("memory_used_bytes", pa.int64(), "B"),
        column("sm_clock_mhz", pa.int32(), "MHz"),
        column("memory_clock_mhz", pa.int32(), "MHz"),
        column("power_w", pa.float64(), "W"),
        column("energy_mj", pa.int64(), "mJ"),
        column("temperature_c", pa.int32(), "degC"),
        column("throttle_reasons", pa.int64(), "1"),
        column("throttle_names", pa.list_(pa.string())),
        column("nvlink_tx_bytes", pa.int64(), "B"),
        column("nvlink_rx_bytes", pa.int64(), "B"),
        column("pcie_tx_bytes", pa.int64(), "B"),
        column("pcie_rx_bytes", pa.int64(), "B"),
        column("gpu_process_ids", pa.list_(pa.int64()), "1"),
        column("process_cpu_pct", pa.float64(), "%"),
        column("process_rss_bytes", pa.int64(), "B"),
    ],
)

# One row per stretch of compute, and per communication call, of an observed run. Steps are those of
# STEPS. Times are microseconds on a clock that the ranks of one node share; `axis` and `bytes` are
# null for compute. `call_phase` is that of the
# tokens a call carried: a stage receives those of the last prompts within its first decode step.
COMPUTE = "compute"
SPANS = table_schema(
    "spans",
    [
        column("rank", pa.int32(), "1"),
        column("phase", pa.string()),
        column("step", pa.int32(), "1"),
        column("kind", pa.string()),
        column("axis", pa.string()),
        column("call_phase", pa.string()),
        column("bytes", pa.int64(), "B"),
        column("start_us", pa.float64(), "us"),
        column("end_us", pa.float64(), "us"),
    ],
)

# One row per thing that a node was measured to do (`orchestrator calibrate`). kind: cache, hbm,
# gemm, decode_gemm or collective;
# mode: eager or graph; group: the ranks that took part in a collective. `bytes` are those that went
# through memory or, of a collective, the message as nccl-tests counts it.
FABRIC = table_schema(
    "fabric",
    [
        column("host", pa.string()),
        column("device_name", pa.string()),
        column("kind", pa.string()),
        column("op", pa.string()),
        column("dtype", pa.string()),
        column("mode", pa.string()),
        column("rank", pa.int32(), "1"),
        column("group", pa.list_(pa.int32()), "1"),
        column("group_size", pa.int32(), "1"),
        column("bytes", pa.int64(), "B"),
        column("time_us", pa.float64(), "us"),
        column("algbw", pa.float64(), "GB/s"),
        column("busbw", pa.float64(), "GB/s"),
        column("tflops", pa.float64(), "TFLOP/s"),
    ],
)


def bus_factor(op: str, ranks: int) -> float:
    """Bytes that cross each link, as a multiple of the message: PERFORMANCE.md of nccl-tests.

    The message is the tensor of an all-reduce or a send, what an all-gather makes, what a
    reduce-scatter takes.
    """
    if op == "all_reduce":
        return 2 * (ranks - 1) / ranks
    return (ranks - 1) / ranks if op in ("all_gather", "reduce_scatter") else 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the host saw it: start and end in seconds of `time.perf_counter`; both 0 inside a
    replayed graph."""

    op: str
    axis: str
    bytes: int
    phase: str
    start: float = 0.0
    end: float = 0.0


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
