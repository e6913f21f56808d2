"""A store with a run of a cell, and what was observed of that cell."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from tables import make

from orchestrator.analysis.observed.accounting import PARTS_OF_STEP, TIMED
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from workers.records import COLLECTIVES, REQUESTS, SPANS

CELL = Cell(Deployment("tiny", "tp4", "torch", "float32"), Scenario("short", 256, 128), 8)
RUN = Run(CELL, 0, 0)
CALL = {"rank": 0, "phase": "decode", "op": "all_reduce", "axis": "tp"}


def requests_table() -> pa.Table:
    """One request with two tokens."""
    row = {"request_index": 0, "token_times_s": [0.1, 0.2], "output_token_ids": [5, 6]}
    return make(REQUESTS, [{**row, "arrival_s": 0.0}])


def run_tables() -> Mapping[str, pa.Table]:
    """What is kept of a run beside its row."""
    counted = make(COLLECTIVES, [{**CALL, "calls": 3, "bytes": 96}])
    return {"requests": requests_table(), "collectives": counted}


def observed_tables() -> Mapping[str, pa.Table]:
    """What is kept of an observed cell: a decode step of 10 ms, of which 2 ms are a transfer and
    1 ms is a wait."""
    part = {
        "rank": 0,
        "phase": "decode",
        "steps": 2,
        "step_ms": 10.0,
        "compute_ms": 7.0,
        "exposed_transfer_ms": 2.0,
        "exposed_wait_ms": 1.0,
        "bubble_ms": 0.0,
        "fused_ms": 0.0,
        "launch_gap_ms": 0.0,
        "comm_busy_ms": 3.0,
    }
    return {
        "spans": make(SPANS, [{"rank": 0, "phase": "decode", "step": 1, "kind": "compute"}]),
        "timed_collectives": make(TIMED, [{**CALL, "calls": 2, "busbw": 30.0}]),
        "parts": make(PARTS_OF_STEP, [part]),
    }
