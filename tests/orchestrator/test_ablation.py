"""Removing collectives: what is said of it, and that such runs are never ranked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from orchestrator.analysis import ablation
from orchestrator.analysis.accounting import account
from orchestrator.analysis.compare import compare
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.plan.planning import ablates
from orchestrator.report.trace import write_traces
from orchestrator.store.results import Store
from strategies import Load, ModelShape, Placement, Topology, plan_layout
from workers.messages import EnginePlan
from workers.records import COMPUTE, SPANS, to_table

MODEL = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)


def placed(layout: str) -> Placement:
    return plan_layout(layout, MODEL, Load(8, 8, 4), Topology.uniform(4)).placement


def cell(what: str = "none") -> Cell:
    return Cell(
        Deployment("m", "tp2", "torch", "bfloat16", ablation=what), Scenario("short", 256, 128), 8
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """tp2 at 10 ms a step, of which the profile says 12% is communication; 9 ms without
    collectives, 15 without NVLink."""
    made = Store(tmp_path / "m-1")
    made.create()
    for what, step, throughput in (
        ("none", 10.0, 100.0),
        ("comm", 9.0, 111.0),
        ("p2p", 15.0, 66.0),
    ):
        row = {
            "status": "completed",
            "decode_ms_per_step": step,
            "output_throughput": throughput,
            "comm_exposed_pct": 12.0,
        }
        made.write_run(Run(cell(what), 0), row, {})
    return made


def test_the_saving_is_held_against_the_profile(store: Store) -> None:
    effects = ablation.effects(store.read("summary"))
    comm, p2p = map(ablation.sentence, effects.to_pylist())
    assert comm == (
        "Without collectives: tp2 short at 8 concurrent: 10.00 -> 9.00 ms a step, 10.0% less; the "
        "profile says 12.0%."
    )
    assert (
        p2p == "Without peer-to-peer links: tp2 short at 8 concurrent: 10.00 -> 15.00 ms a step, "
        "x 1.50."
    )


def test_ablated_runs_are_not_compared_with_layouts(store: Store) -> None:
    summary = store.read("summary")
    assert isinstance(summary, pa.Table)
    assert summary.num_rows == 3
    assert [row["output_throughput"] for row in compare(summary).to_pylist()] == [100.0]


@pytest.mark.parametrize(
    ("what", "layout", "device", "applies"),
    [
        ("comm", "tp2", "cpu", True),
        ("comm", "pp2", "cpu", False),
        ("comm", "tp2pp2", "cpu", True),
        ("p2p", "tp2", "cpu", False),
        ("p2p", "tp2", "cuda", True),
        ("p2p", "pp2", "cuda", True),
        ("p2p", "dp4", "cuda", False),
    ],
)
def test_only_what_a_layout_has_is_left_out(
    what: str, layout: str, device: str, applies: bool
) -> None:
    engine_plan = EnginePlan(MODEL, layout, placed(layout), None, "float32", device, 4, 32, 64)  # type: ignore[arg-type]
    assert ablates(what, "torch", engine_plan) is applies


def test_traces_have_a_process_a_rank_and_times_from_the_first_span(store: Store) -> None:
    rows = [
        {
            "rank": rank,
            "phase": "decode",
            "step": step,
            "kind": kind,
            "axis": axis,
            "bytes": 8,
            "start_us": 1e6 + 10 * step,
            "end_us": 1e6 + 10 * step + 5,
        }
        for rank in (0, 1)
        for step in (0, 1)
        for kind, axis in ((COMPUTE, None), ("all_reduce", "tp"))
    ]
    store.write_observed(cell(), account(to_table(rows, SPANS), placed("tp2")))
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
