"""A run's row: made whole by `measured` or `failed`, and invalid above its bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from driver_inputs import plan
from request_tables import request, requests
from tables import make

from orchestrator.analysis.bounds import Bounds
from orchestrator.analysis.building import Memory, Startup, memory_of, startup_of
from orchestrator.analysis.energy import Energy
from orchestrator.analysis.goodput import Goodput
from orchestrator.analysis.latency import Latency
from orchestrator.analysis.outputs import output_digest
from orchestrator.analysis.roofline import CALIBRATED, Ceilings
from orchestrator.analysis.summary import MEASURED, Attempt, Building, Measured, failed, measured
from orchestrator.analysis.throughput import Steady
from orchestrator.experiment import Cell, Deployment, Scenario
from orchestrator.store.schema import RunKey, cell_key
from workers.messages import Built, RankReport, Request, Work
from workers.records import COLLECTIVES, STEPS
from workers.rows import columns, flat, nothing

CELL = Cell(Deployment("tiny", "tp2", "torch", "float32"), Scenario("short", 3, 4), 2)
KEY = RunKey(cell=cell_key("e", CELL), start=0, run=1)
WORK = Work(tuple(Request(i, (0, 0, 0), 4) for i in range(4)), 2)
# Two at a time, each token 10 ms after the one before: 16 tokens in 80 ms.
SERVED = requests(
    *(request([0.01, 0.02, 0.03, 0.04]) for _ in range(2)),
    *(request([0.05, 0.06, 0.07, 0.08], arrival_s=0.04) for _ in range(2)),
)


def built(rank: int, capture_s: float | None = 0.5, kv_tokens: int | None = 64) -> Built:
    return Built(rank, 1.0 + rank, capture_s, 1000 + rank, kv_tokens, "Test GPU")


def report(rank: int, requests: pa.Table | None = None) -> RankReport:
    row = {"rank": rank, "phase": "decode", "op": "all_reduce", "axis": "tp"}
    sent = make(COLLECTIVES, [{**row, "calls": 3, "bytes": 96}])
    return RankReport(rank, requests, STEPS.make([]), sent, 100 + rank)


BUILDING = Building([built(0), built(1)], "Test GPU", build_s=2.5, startup_s=4.0)
REPORTS = [report(1, SERVED), report(0)]
ATTEMPT = Attempt(
    key=KEY,
    plan=plan(2),
    work=WORK,
    started_at="2030-01-01T00:00:00+00:00",
    block=3,
    metadata='{"k": "v"}',
    levels={"ttft": 20.0},
)


# -- whole rows


def test_a_run_has_every_column_that_there_is() -> None:
    row = measured(ATTEMPT, BUILDING, REPORTS, SERVED)
    assert MEASURED.make([row]).column_names == [one.name for one in columns(type(row))]
    known = {name: value for name, value in flat(row).items() if value is not None}
    assert known["output_throughput"] == pytest.approx(16 / 0.08)
    assert known["median_tpot_ms"] == pytest.approx(10.0)
    assert (known["goodput"], known["slo_attainment_pct"]) == ("ttft:20", 100.0)
    assert known["steady_output_throughput"] == pytest.approx(200.0)
    assert (known["comm_calls"], known["comm_bytes"]) == (6, 192)
    assert (known["build_s"], known["startup_s"], known["load_s"]) == (2.5, 4.0, 2.0)
    assert (known["weight_bytes"], known["peak_memory_bytes"]) == (1001, 101)
    assert (known["num_gpus"], known["num_prompts"], known["block"]) == (2, 4, 3)
    assert (known["input_len"], known["output_len"]) == (3, 4)
    assert (known["run"], known["strategy"], known["status"]) == (1, "tp2", "completed")


def test_what_a_run_cannot_know_is_none() -> None:
    """On a CPU, in a closed loop, with an engine that does not tell its tokens."""
    row = measured(ATTEMPT, BUILDING, REPORTS, SERVED)
    assert row.energy == nothing(Energy)
    assert row.bounds == nothing(Bounds)
    assert row.arrivals.request_rate is row.arrivals.mean_schedule_delay_ms is None
    assert row.output_digest is row.reason is None


def test_a_run_is_kept_and_read_as_it_was_made() -> None:
    row = measured(ATTEMPT, BUILDING, REPORTS, SERVED)
    (read,) = MEASURED.rows(MEASURED.make([row]))
    assert flat(read) == {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flat(row).items()
    }


def test_the_name_of_the_device_is_that_of_the_building() -> None:
    row = measured(ATTEMPT, BUILDING, REPORTS, SERVED)
    assert row.conditions.device_name == BUILDING.device_name


def test_an_open_loop_has_its_rate_and_no_steady_state() -> None:
    late = tuple(replace(one, arrival_s=0.1 * one.index) for one in WORK.requests)
    attempt = replace(ATTEMPT, work=replace(WORK, requests=late), request_rate=10.0, burstiness=0.5)
    row = measured(attempt, BUILDING, REPORTS, SERVED)
    assert (row.arrivals.request_rate, row.arrivals.burstiness) == (10.0, 0.5)
    assert row.steady == nothing(Steady)


def test_the_figures_of_conversations_are_by_what_can_be_in_flight() -> None:
    """One of three turns and one of one: two seats are full for 40 ms, and others stay empty."""
    after = {1: 0, 2: 1}
    turns = tuple(replace(one, after=after.get(one.index)) for one in WORK.requests)
    served = requests(
        *(request([at + 0.01 * i for i in range(1, 5)], at) for at in (0.0, 0.04, 0.08, 0.0))
    )
    asked = replace(ATTEMPT, ceilings=Ceilings(1e12, {"float32": 1e15}, 0, CALIBRATED))

    def row(seats: int) -> Measured:
        work = Work(turns, seats, reuse="conversation")
        return measured(replace(asked, work=work), BUILDING, REPORTS, served)

    assert row(2).throughput.prefill_s == 0.01
    assert row(2).steady == nothing(Steady)  # in its full time no prompt is read
    assert row(2).bounds.bound_pct == row(8).bounds.bound_pct is not None
    assert (row(2).conditions.num_prompts, row(2).conditions.num_conversations) == (4, 2)
    assert measured(ATTEMPT, BUILDING, REPORTS, SERVED).conditions.num_conversations is None


def test_lengths_that_differ_have_a_mean_and_no_one_length() -> None:
    longer = (*WORK.requests[:3], Request(3, (0,) * 7, 12))
    row = measured(replace(ATTEMPT, work=replace(WORK, requests=longer)), BUILDING, REPORTS, SERVED)
    asked = row.conditions
    assert (asked.input_len, asked.mean_input_len) == (None, 4.0)
    assert (asked.output_len, asked.mean_output_len) == (None, 6.0)


def test_the_outputs_have_a_digest_where_they_are_known() -> None:
    ids = pa.array([[1, 2, 3, 4]] * 4, pa.list_(pa.int64()))
    place = SERVED.schema.get_field_index("output_token_ids")
    told = SERVED.set_column(place, SERVED.schema.field(place), ids)
    row = measured(ATTEMPT, BUILDING, REPORTS, told)
    assert row.output_digest == output_digest(told)
    assert row.output_digest is not None


# -- runs without a result


def test_a_failed_run_has_every_column_and_says_what_was_asked() -> None:
    row = failed(replace(ATTEMPT, request_rate=10.0, burstiness=0.5), "timeout")
    assert MEASURED.make([row]).column_names == [one.name for one in columns(type(row))]
    assert (row.status, row.reason, row.run, row.cell) == ("failed", "timeout", 1, KEY.cell)
    assert (row.throughput.completed, row.throughput.failed) == (0, 4)
    assert (row.conditions.num_prompts, row.conditions.num_gpus, row.conditions.block) == (4, 2, 3)
    assert (row.arrivals.request_rate, row.arrivals.burstiness) == (10.0, 0.5)
    assert row.throughput.output_throughput is None
    assert (row.goodput, row.latency, row.memory) == (
        nothing(Goodput),
        nothing(Latency),
        nothing(Memory),
    )


@pytest.mark.parametrize(("device", "name"), [("cpu", "cpu"), ("cuda", None)])
def test_a_failed_run_on_a_cpu_is_known_to_be_of_one(device: Any, name: str | None) -> None:
    row = failed(replace(ATTEMPT, plan=replace(ATTEMPT.plan, device=device)), "timeout")
    assert row.conditions.device_name == name


SLOW = Ceilings(hbm=1e3, flops={"float32": 1e3}, cache_bytes=0, source=CALIBRATED)


def test_a_run_above_its_data_sheet_is_invalid_and_keeps_what_was_measured() -> None:
    row = measured(replace(ATTEMPT, sheet=SLOW), BUILDING, REPORTS, SERVED)
    assert row.status == "invalid"
    assert row.reason is not None
    assert row.reason.startswith("200.0 tok/s is above the bound of")
    assert row.bounds.bound_pct is not None
    assert row.bounds.bound_pct > 100
    assert row.throughput.output_throughput == pytest.approx(200.0)


def test_a_run_whose_prompts_may_have_been_cached_is_held_to_no_bound() -> None:
    """The engine torch has no prefix cache, so its prompts say what it computed."""
    shared = replace(ATTEMPT, sheet=SLOW, work=replace(WORK, reuse="all"))
    elsewhere = replace(KEY, cell=replace(KEY.cell, engine="vllm"))
    assert measured(shared, BUILDING, REPORTS, SERVED).status == "invalid"
    row = measured(replace(shared, key=elsewhere), BUILDING, REPORTS, SERVED)
    assert (row.status, row.bounds) == ("completed", nothing(Bounds))


def test_a_run_above_what_was_measured_of_its_devices_is_completed() -> None:
    row = measured(replace(ATTEMPT, ceilings=SLOW), BUILDING, REPORTS, SERVED)
    assert (row.status, row.reason) == ("completed", None)
    assert row.bounds.bound_pct is not None
    assert row.bounds.bound_pct > 100


def test_a_run_below_its_bound_is_completed() -> None:
    fast = Ceilings(hbm=1e15, flops={"float32": 1e15}, cache_bytes=0, source=CALIBRATED)
    row = measured(replace(ATTEMPT, ceilings=fast), BUILDING, REPORTS, SERVED)
    assert (row.status, row.reason, row.bounds.bound_source) == ("completed", None, "calibrated")


# -- building and memory


def test_the_slowest_rank_counts_in_what_starting_took() -> None:
    assert startup_of([built(0), built(1, capture_s=0.75)], 2.5, None) == Startup(
        build_s=2.5, load_s=2.0, capture_s=0.75, startup_s=None
    )
    assert startup_of([built(0, capture_s=None)], 2.5, 4.0).capture_s is None


def test_memory_is_the_fullest_rank_with_each_beside_it() -> None:
    """A token takes 128 bytes: 2 layers, keys and values of 4 heads, 2 numbers of 4 bytes."""
    found = memory_of([built(1), built(0, kv_tokens=60)], plan(2), [report(1), report(0)])
    assert (found.peak_memory_bytes, found.weight_bytes, found.kv_tokens) == (101, 1001, 60)
    assert found.peak_memory_bytes_per_rank == [100, 101]
    assert found.weight_bytes_per_rank == [1000, 1001]
    assert found.kv_bytes_per_rank == [60 * 128, 64 * 128]


def test_without_a_paged_cache_there_is_no_room_for_kv_to_tell() -> None:
    found = memory_of([built(0), built(1, kv_tokens=None)], plan(2), [report(0), report(1)])
    assert found.kv_bytes_per_rank is None
