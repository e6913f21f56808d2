"""Observed runs as traces for Perfetto."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tables import make

from orchestrator.analysis.observed.accounting import account
from orchestrator.experiment import Cell, Deployment, Scenario
from orchestrator.report.trace import write_traces
from orchestrator.store.store import Store
from strategies import Load, ModelShape, Topology, plan_layout
from workers.records import COMPUTE, SPANS

MODEL = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)
CELL = Cell(Deployment("m", "tp2", "torch", "bfloat16"), Scenario("short", 256, 128), 8)


def observed(store: Store, start: int, length_us: float = 5.0) -> None:
    """Two steps of two ranks, kept as those of a start."""
    rows = [
        {
            "rank": rank,
            "phase": "decode",
            "step": step,
            "kind": kind,
            "axis": axis,
            "bytes": 8,
            "start_us": 1e6 + 10 * step,
            "end_us": 1e6 + 10 * step + length_us,
        }
        for rank in (0, 1)
        for step in (0, 1)
        for kind, axis in ((COMPUTE, None), ("all_reduce", "tp"))
    ]
    placement = plan_layout("tp2", MODEL, Load(8, 8, 4), Topology.uniform(4)).placement
    store.write_observed(CELL, start, account(make(SPANS, rows), placement))


def test_a_trace_is_of_the_first_start_that_was_observed(tmp_path: Path) -> None:
    store = Store(tmp_path / "m-1")
    store.create()
    for start in (2, 1):
        observed(store, start, length_us=float(start))
    (path,) = write_traces(store.folder)
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert {event["dur"] for event in events if event["ph"] == "X"} == {1.0}


def test_traces_have_a_process_a_rank_and_times_from_the_first_span(tmp_path: Path) -> None:
    store = Store(tmp_path / "m-1")
    store.create()
    observed(store, 0)
    (path,) = write_traces(store.folder)
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {
        event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == "process_name"
    }
    assert names == {"rank 0", "rank 1"}
    spans = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["tid"], event["name"]) for event in spans} == {
        (rank, line, name)
        for rank in (0, 1)
        for line, name in ((0, "decode step 1"), (1, "decode compute"), (2, "decode all_reduce tp"))
    }
    assert min(event["ts"] for event in spans) == 0
    assert {event["dur"] for event in spans} == {5}
